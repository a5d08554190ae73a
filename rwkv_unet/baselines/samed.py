"""SAMed: SAM's image encoder, frozen but for low-rank additions, and SAM's mask decoder with one mask a class.

K. Zhang and D. Liu, "Customized Segment Anything Model for Medical Image Segmentation",
https://arxiv.org/abs/2304.13785 (`samed_b`; `samed_h` is the authors' SAMed_h); A. Kirillov et al., "Segment Anything",
https://arxiv.org/abs/2304.02643, Appendix A; E. J. Hu et al., "LoRA", https://arxiv.org/abs/2106.09685. The encoder is
timm's. Modules and weights of the decoder have the names that they have in SAM's checkpoints.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from functools import partial
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from rwkv_unet.config import suggest
from rwkv_unet.images import check_images
from rwkv_unet.layers import resize

SAMS = ("samvit_base_patch16", "samvit_large_patch16", "samvit_huge_patch16")
NORM_EPS = 1e-6
"""Of the encoder's blocks, as in SAM; timm has 1e-5."""
QUARTERS = 4
"""Parts of the encoder, each of which ends with a block that attends to the whole image; all others do in windows."""
HEAD_DIM = 64
DIM = 256
"""Channels of the decoder, which the encoder's neck gives."""
HEADS, LAYERS, HIDDEN = 8, 2, 2048
UP_DIMS = (DIM // 4, DIM // 8)
OF_SAM = (
    "prompt_encoder.",
    *(f"mask_decoder.{name}." for name in ("transformer", "iou_token", "output_upscaling")),
)
"""Prefixes of what begins with SAM's own weights, beside the encoder: all that does not depend on the classes."""


class SAMed(nn.Module):
    """Segments (B, in_channels, H, W) into logits (B, num_classes, H, W).

    All weights are trained but the encoder's. `rank` is that of the additions to queries and values. `width` and
    `depth` replace the encoder's, `depth` being a multiple of 4 and `width` of 64.
    """

    divisor = 16

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 3,
        *,
        encoder: str = SAMS[0],
        rank: int = 4,
        width: int | None = None,
        depth: int | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(rank, int) or rank < 1:
            raise ValueError(f"model.rank must be a positive integer, not {rank!r}")
        self.in_channels = in_channels
        self.encoder = image_encoder(encoder, in_channels, width, depth).requires_grad_(False)
        self.adapters = nn.ModuleList(LowRank(self.encoder.embed_dim, rank) for _ in self.encoder.blocks)
        for block, adapter in zip(self.encoder.blocks, self.adapters, strict=True):
            block.attn.fused_attn = False  # over three axes, for which no kernel is fused, and ONNX has no operator
            # Added from outside, so that the encoder's weights keep their names.
            block.attn.qkv.register_forward_hook(adapter.added)
        self.prompt_encoder = NoPrompt()
        self.mask_decoder = MaskDecoder(num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, num_classes, H, W); ValueError for an image of the wrong shape."""
        x = check_images(x, in_channels=self.in_channels, divisor=self.divisor)
        masks = self.mask_decoder(*self.prompt_encoder(self._encode(x)))
        return resize(masks, x.shape[2:])

    def _encode(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 256, H / 16, W / 16). Positions are resized as the authors do, unlike in timm."""
        encoder = self.encoder
        patches = encoder.patch_embed(x)  # (B, H / 16, W / 16, C)
        positions = resize(encoder.pos_embed.permute(0, 3, 1, 2), patches.shape[1:3])
        tokens = encoder.blocks(patches + positions.permute(0, 2, 3, 1))
        return encoder.neck(tokens.permute(0, 3, 1, 2))


def image_encoder(name: str, in_channels: int, width: int | None, depth: int | None) -> Any:
    """One of timm's image encoders of SAM, or a smaller one of its kind, with random weights."""
    if name not in SAMS:
        raise ValueError(f"model.encoder: unknown image encoder of SAM {name!r}; {suggest(name, list(SAMS))}")
    sizes: dict[str, Any] = {}
    for option, value, multiple in (("width", width, HEAD_DIM), ("depth", depth, QUARTERS)):
        if value is not None and (not isinstance(value, int) or value < 1 or value % multiple):
            raise ValueError(f"model.{option} must be a positive multiple of {multiple}, not {value!r}")
    if width is not None:
        sizes |= {"embed_dim": width, "num_heads": width // HEAD_DIM}
    if depth is not None:
        quarter = depth // QUARTERS
        sizes |= {"depth": depth, "global_attn_indexes": tuple(range(quarter - 1, depth, quarter))}
    return timm.create_model(
        name,
        pretrained=False,
        in_chans=in_channels,
        num_classes=0,
        global_pool="",
        norm_layer=partial(nn.LayerNorm, eps=NORM_EPS),
        **sizes,
    )


class LowRank(nn.Module):
    """What LoRA adds to the queries and values of a block; nothing before training."""

    def __init__(self, dim: int, rank: int) -> None:
        super().__init__()
        self.down_q, self.down_v = (nn.Linear(dim, rank, bias=False) for _ in range(2))
        self.up_q, self.up_v = (nn.Linear(rank, dim, bias=False) for _ in range(2))
        for up in (self.up_q, self.up_v):
            nn.init.zeros_(up.weight)

    def added(self, qkv: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """As a hook of the layer (..., C) -> (..., 3 C) whose output is queries, keys and values."""
        (x,) = inputs
        q, k, v = output.chunk(3, dim=-1)
        return torch.cat([q + self.up_q(self.down_q(x)), k, v + self.up_v(self.down_v(x))], dim=-1)


class NoPrompt(nn.Module):
    """What SAM's prompt encoder gives without points, boxes or masks."""

    def __init__(self) -> None:
        super().__init__()
        self.no_mask_embed = nn.Embedding(1, DIM)
        self.pe_layer = PositionEncoding()

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """An embedded image (B, 256, H, W) marked as one without a mask, and its positions (256, H, W)."""
        return image + self.no_mask_embed.weight[0, :, None, None], self.pe_layer(*image.shape[2:])


class PositionEncoding(nn.Module):
    """Sines and cosines of random frequencies, which SAM's checkpoints contain, at the centres of a map's cells."""

    positional_encoding_gaussian_matrix: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("positional_encoding_gaussian_matrix", torch.randn(2, DIM // 2))

    def forward(self, height: int, width: int) -> Tensor:
        """(256, H, W); the image is from -1 to 1 along both axes."""
        of_x, of_y = self.positional_encoding_gaussian_matrix.unbind()
        x, y = ((torch.arange(n, device=of_x.device, dtype=of_x.dtype) + 0.5) / n * 2 - 1 for n in (width, height))
        angles = 2 * math.pi * (x[:, None] * of_x + y[:, None, None] * of_y)  # (H, W, 128)
        return torch.cat([angles.sin(), angles.cos()], dim=-1).permute(2, 0, 1)


class MaskDecoder(nn.Module):
    """Masks (B, num_classes, 4 H, 4 W) of an embedded image (B, 256, H, W), without SAM's estimates of their IoU."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.transformer = TwoWayTransformer()
        self.iou_token = nn.Embedding(1, DIM)  # the others attend to it
        self.mask_tokens = nn.Embedding(num_classes, DIM)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose2d(DIM, UP_DIMS[0], 2, stride=2),
            LayerNorm2d(UP_DIMS[0]),
            nn.GELU(),
            nn.ConvTranspose2d(*UP_DIMS, 2, stride=2),
            nn.GELU(),
        )
        self.output_hypernetworks_mlps = nn.ModuleList(hypernetwork() for _ in range(num_classes))

    def forward(self, image: Tensor, positions: Tensor) -> Tensor:
        """`positions` are (256, H, W)."""
        tokens = torch.cat([self.iou_token.weight, self.mask_tokens.weight]).expand(image.shape[0], -1, -1)
        flat = image.flatten(2).transpose(1, 2)  # (B, H W, 256)
        tokens, flat = self.transformer(tokens, flat, positions.flatten(1).T)
        maps = self.output_upscaling(flat.transpose(1, 2).unflatten(2, image.shape[2:]))  # (B, 32, 4 H, 4 W)
        weights = [mlp(tokens[:, 1 + i]) for i, mlp in enumerate(self.output_hypernetworks_mlps)]
        return (torch.stack(weights, dim=1) @ maps.flatten(2)).unflatten(2, maps.shape[2:])


def hypernetwork() -> nn.Sequential:
    """From a class's token (B, 256) to the weights (B, 32) that its mask is the sum of maps with."""
    layers = [nn.Linear(DIM, DIM), nn.ReLU(), nn.Linear(DIM, DIM), nn.ReLU(), nn.Linear(DIM, UP_DIMS[-1])]
    return nn.Sequential(*layers)


class TwoWayTransformer(nn.Module):
    """Tokens (B, N, 256) and an image (B, M, 256) that attend to one another."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TwoWayBlock(first=i == 0) for i in range(LAYERS))
        self.final_attn_token_to_image = Attention(DIM // 2)
        self.norm_final_attn = nn.LayerNorm(DIM)

    def forward(self, tokens: Tensor, image: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """`positions` (M, 256) are those of the image; a token's position is what it was at first."""
        at_first = tokens
        for layer in self.layers:
            tokens, image = layer(tokens, image, at_first, positions)
        seen = self.final_attn_token_to_image(tokens + at_first, image + positions, image)
        return self.norm_final_attn(tokens + seen), image


class TwoWayBlock(nn.Module):
    """Tokens attend to tokens, then to the image, an MLP changes them, and the image attends to them.

    In the first block the tokens, which have no content yet but their position, are replaced by what they attend to.
    """

    def __init__(self, *, first: bool) -> None:
        super().__init__()
        self.first = first
        self.self_attn = Attention(DIM)
        self.norm1 = nn.LayerNorm(DIM)
        self.cross_attn_token_to_image = Attention(DIM // 2)
        self.norm2 = nn.LayerNorm(DIM)
        mlp = {"lin1": nn.Linear(DIM, HIDDEN), "act": nn.ReLU(), "lin2": nn.Linear(HIDDEN, DIM)}
        self.mlp = nn.Sequential(OrderedDict(mlp))
        self.norm3 = nn.LayerNorm(DIM)
        self.norm4 = nn.LayerNorm(DIM)
        self.cross_attn_image_to_token = Attention(DIM // 2)

    def forward(
        self, tokens: Tensor, image: Tensor, token_positions: Tensor, positions: Tensor
    ) -> tuple[Tensor, Tensor]:
        if self.first:
            tokens = self.self_attn(tokens, tokens, tokens)
        else:
            placed = tokens + token_positions
            tokens = tokens + self.self_attn(placed, placed, tokens)
        tokens = self.norm1(tokens)
        tokens = self.norm2(tokens + self.cross_attn_token_to_image(tokens + token_positions, image + positions, image))
        tokens = self.norm3(tokens + self.mlp(tokens))
        image = self.norm4(image + self.cross_attn_image_to_token(image + positions, tokens + token_positions, tokens))
        return tokens, image


class Attention(nn.Module):
    """Queries (B, N, 256) attend to keys and values (B, M, 256); all heads together have `inner` channels."""

    def __init__(self, inner: int) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(DIM, inner) for _ in range(3))
        self.out_proj = nn.Linear(inner, DIM)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (
            project(x).unflatten(2, (HEADS, -1)).transpose(1, 2)
            for project, x in ((self.q_proj, q), (self.k_proj, k), (self.v_proj, v))
        )
        return self.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
