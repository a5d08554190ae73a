"""TransUNet: a ResNet-50 whose deepest features are tokens of a ViT-B/16, and a decoder that gets the ResNet's others.

J. Chen et al., "TransUNet: Transformers Make Strong Encoders for Medical Image Segmentation",
https://arxiv.org/abs/2102.04306, Figure 1, equations 1 to 3, Section 3.2 (CUP). The encoder is timm's
`vit_base_r50_s16_224` without its class token, whose position embeddings are resized to the image's grid. Without a
skip connection it is the paper's R50-ViT-CUP.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rwkv_unet.config import suggest
from rwkv_unet.images import check_images

HYBRIDS = ("vit_base_r50_s16_224", "vit_base_r50_s16_384")
DROPOUT = 0.1
BRIDGE_DIM = 512
DECODER_DIMS = (256, 128, 64, 16)
SKIP_DIMS = (512, 256, 64)
"""Of strides 8, 4 and 2."""


class CascadedUpsampler(nn.Module):
    """A transformer's tokens, and the decoder (CUP) that doubles their map four times, with the features of `num_skips`
    strides, the deepest first."""

    divisor = 16

    def __init__(self, num_classes: int, in_channels: int, encoder: Any, *, num_skips: int) -> None:
        super().__init__()
        self.in_channels, self.num_skips = in_channels, num_skips
        self.encoder = encoder
        self.bridge = conv_norm_relu(encoder.embed_dim, BRIDGE_DIM)
        skip_dims = [*SKIP_DIMS[:num_skips], *(len(DECODER_DIMS) - num_skips) * [0]]
        self.decoder = nn.ModuleList(
            nn.Sequential(conv_norm_relu(before + skip, dim), conv_norm_relu(dim, dim))
            for before, skip, dim in zip((BRIDGE_DIM, *DECODER_DIMS), skip_dims, DECODER_DIMS, strict=False)
        )
        self.head = nn.Conv2d(DECODER_DIMS[-1], num_classes, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, num_classes, H, W); ValueError for an image of the wrong shape."""
        x = check_images(x, in_channels=self.in_channels, divisor=self.divisor)
        *features, tokens = self._encode(x)
        skips = features[len(features) - self.num_skips :]
        x = self.bridge(tokens)
        for level in self.decoder:
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
            x = level(torch.cat([x, skips.pop()], 1) if skips else x)
        return self.head(x)

    def _encode(self, x: Tensor) -> list[Tensor]:
        """The features beside the tokens, shallowest first, and the map of tokens (B, C, H / 16, W / 16)."""
        raise NotImplementedError


class TransUNet(CascadedUpsampler):
    """Segments (B, in_channels, H, W) into logits (B, num_classes, H, W); `num_skips` are the skips, deepest first."""

    def __init__(
        self, num_classes: int, in_channels: int = 3, *, encoder: str = HYBRIDS[0], num_skips: int = len(SKIP_DIMS)
    ) -> None:
        if num_skips not in range(len(SKIP_DIMS) + 1):
            raise ValueError(f"model.num_skips must be 0, 1, 2 or 3, not {num_skips!r}")
        super().__init__(num_classes, in_channels, hybrid_transformer(encoder, in_channels), num_skips=num_skips)

    def _encode(self, x: Tensor) -> list[Tensor]:
        return hybrid_features(self.encoder, x)


def hybrid_transformer(name: str, in_channels: int) -> Any:
    """timm's hybrid of a ResNet-50 and a ViT-B/16, for images of any size."""
    vit = vision_transformer(name, in_channels, HYBRIDS)
    for norm in (x for x in vit.patch_embed.backbone.modules() if isinstance(x, nn.GroupNorm)):
        nn.init.ones_(norm.weight)  # timm starts the last one of a block at 0
    return vit


def vision_transformer(name: str, in_channels: int, known: Sequence[str]) -> Any:
    """One of `known`, ViTs of timm's, with random weights: for images of any size, without a class token."""
    if name not in known:
        raise ValueError(f"model.encoder: unknown ViT {name!r}; {suggest(name, list(known))}")
    vit: Any = timm.create_model(
        name,
        pretrained=False,
        in_chans=in_channels,
        num_classes=0,
        class_token=False,
        global_pool="",
        dynamic_img_size=True,
        pos_drop_rate=DROPOUT,
        proj_drop_rate=DROPOUT,
    )
    for block in vit.blocks:
        block.attn.proj_drop = nn.Identity()  # the authors drop in the MLPs only
    return vit


def hybrid_features(vit: Any, x: Tensor) -> list[Tensor]:
    """The ResNet's features of strides 2, 4 and 8, and the transformer's tokens (B, 768, H / 16, W / 16)."""
    resnet = vit.patch_embed.backbone
    features = [resnet.stem.norm(resnet.stem.conv(x))]
    x = resnet.stem.pool(features[0])
    *stages, last = resnet.stages
    for stage in stages:
        x = stage(x)
        features.append(x)
    return [*features, transformed(vit, vit.patch_embed.proj(last(x)).permute(0, 2, 3, 1))]


def transformed(vit: Any, patches: Tensor) -> Tensor:
    """The transformer's tokens of patches (B, H, W, C), as a map (B, C, H, W)."""
    tokens = vit.norm(vit.blocks(vit._pos_embed(patches)))
    return tokens.transpose(1, 2).unflatten(2, patches.shape[1:3])


def conv_norm_relu(in_dim: int, out_dim: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_dim, out_dim, 3, padding=1, bias=False), nn.BatchNorm2d(out_dim), nn.ReLU(inplace=True)
    )
