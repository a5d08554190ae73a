"""HiFormer: a ResNet whose features guide a Swin Transformer, and its finest and coarsest map fused by class tokens.

M. Heidari et al., "HiFormer: Hierarchical Multi-scale Representations Using Transformers for Medical Image
Segmentation", WACV 2023, https://arxiv.org/abs/2207.08518, in its sizes S, B and L. In the released code the
double-level fusion (DLF) changes class tokens that are then dropped, because the output of the blocks that pass them on
is not used. Here it is, so that the maps are fused; `fusion=False` leaves DLF out, as the released code in effect does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import timm
import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from rwkv_unet.baselines.missformer import Attention
from rwkv_unet.baselines.swin import SIDE, init_transformer, swin_encoder
from rwkv_unet.config import suggest
from rwkv_unet.images import check_images
from rwkv_unet.layers import resize

RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101")
TRANSFORMER, DEPTHS, DROP_PATH = "swin_tiny_patch4_window7_224", (2, 2, 6), 0.1
WIDTH = 128
GROUPS = 32
STRIDES = (4, 16)
"""Of the fine and of the coarse map."""


class HiFormer(nn.Module):
    """Segments (B, in_channels, H, W) into logits (B, num_classes, H, W); the defaults are size L.

    Args:
        depths, heads, mlp_ratios: of the blocks of DLF in the fine and in the coarse map.
        fusion: False leaves DLF out.
    """

    divisor = STRIDES[-1]

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 3,
        *,
        encoder: str = "resnet34",
        depths: Sequence[int] = (1, 4),
        heads: Sequence[int] = (6, 6),
        mlp_ratios: Sequence[float] = (4.0, 4.0),
        fusion: bool = True,
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.encoder = resnet_encoder(encoder, in_channels)
        self.transformer = swin_encoder(TRANSFORMER, in_channels, depths=DEPTHS, drop_path=DROP_PATH)
        self.transformer.patch_embed = self.transformer.norm = nn.Identity()
        dims = [info["num_chs"] for info in self.transformer.feature_info]
        self.laterals = nn.ModuleList(
            nn.Conv2d(i, o, 1) for i, o in zip(self.encoder.feature_info.channels(), dims, strict=True)
        )
        ends = (dims[0], dims[-1])
        self.positions = nn.ParameterList(
            nn.Parameter(0.02 * torch.randn(1, dim, SIDE // stride, SIDE // stride))
            for dim, stride in zip(ends, STRIDES, strict=True)
        )
        self.fusion = Fusion(ends, depths, heads, mlp_ratios) if fusion else None
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for dim in ends)
        self.fine, self.coarse = nn.Sequential(*conv_norm_relu(ends[0], WIDTH)), coarse_decoder(ends[1])
        self.full_size = nn.Sequential(nn.Conv2d(WIDTH, 16, 1), nn.ReLU(inplace=True), upsample(STRIDES[0]))
        self.head = nn.Conv2d(16, num_classes, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, num_classes, H, W); ValueError for an image of the wrong shape."""
        x = check_images(x, in_channels=self.in_channels, divisor=self.divisor)
        maps = self._pyramid(x)
        tokens = [
            y + resize(position, y.shape[1:3]).permute(0, 2, 3, 1)
            for y, position in zip(maps, self.positions, strict=True)
        ]
        if self.fusion is not None:
            tokens = self.fusion(maps, tokens)
        fine, coarse = (norm(y).permute(0, 3, 1, 2) for norm, y in zip(self.norms, tokens, strict=True))
        return self.head(self.full_size(self.fine(fine) + self.coarse(coarse)))

    def _pyramid(self, x: Tensor) -> list[Tensor]:
        """The fine and the coarse map (B, H, W, C): each stage of the transformer goes on from the stage before, and
        the ResNet's features of its size are added to what it gives."""
        features = [lateral(y).permute(0, 2, 3, 1) for lateral, y in zip(self.laterals, self.encoder(x), strict=True)]
        first, *others = self.transformer.layers
        fine = y = features[0] + first(features[0])
        for stage, feature in zip(others, features[1:], strict=True):
            y = feature + stage(y)
        return [fine, y]


def resnet_encoder(name: str, in_channels: int) -> Any:
    """timm's (B, in_channels, H, W) -> features of strides 4, 8 and 16, with random weights."""
    if name not in RESNETS:
        raise ValueError(f"model.encoder: unknown ResNet {name!r}; {suggest(name, list(RESNETS))}")
    return timm.create_model(name, pretrained=False, features_only=True, out_indices=(1, 2, 3), in_chans=in_channels)


class Fusion(nn.Module):
    """DLF: the mean of either map, its class token, attends to the other map; then blocks pass on what it has seen."""

    def __init__(
        self, dims: tuple[int, int], depths: Sequence[int], heads: Sequence[int], mlp_ratios: Sequence[float]
    ) -> None:
        super().__init__()
        if not len(depths) == len(heads) == len(mlp_ratios) == len(dims):
            raise ValueError("model.depths, model.heads and model.mlp_ratios must be two each: fine and coarse")
        others = dims[::-1]
        self.class_norms = nn.ModuleList(nn.LayerNorm(dim) for dim in dims)
        self.class_positions = nn.ParameterList(nn.Parameter(0.02 * torch.randn(1, 1, dim)) for dim in dims)
        self.there = nn.ModuleList(norm_act_linear(i, o) for i, o in zip(dims, others, strict=True))
        self.attention_norms = nn.ModuleList(nn.LayerNorm(dim) for dim in others)
        self.attentions = nn.ModuleList(Attention(d, h) for d, h in zip(others, reversed(heads), strict=True))
        self.back = nn.ModuleList(norm_act_linear(i, o) for i, o in zip(others, dims, strict=True))
        self.blocks = nn.ModuleList(
            nn.Sequential(*(Block(d, h, ratio, qkv_bias=True, norm_layer=nn.LayerNorm) for _ in range(depth)))
            for d, h, ratio, depth in zip(dims, heads, mlp_ratios, depths, strict=True)
        )
        self.apply(init_transformer)

    def forward(self, maps: list[Tensor], positioned: list[Tensor]) -> list[Tensor]:
        """The fine and the coarse map (B, H, W, C), without and with their positions -> the fused ones."""
        tokens = [y.flatten(1, 2) for y in positioned]
        fused = []
        for i, y in enumerate(maps):
            token = self.class_norms[i](y.flatten(1, 2)).mean(1, keepdim=True) + self.class_positions[i]
            token = self.there[i](token)
            around = self.attention_norms[i](torch.cat([token, tokens[1 - i]], 1))
            token = self.back[i](token + self.attentions[i](around[:, :1], around))
            fused.append(self.blocks[i](torch.cat([token, tokens[i]], 1))[:, 1:].reshape(y.shape))
        return fused


def norm_act_linear(in_dim: int, out_dim: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(in_dim), nn.GELU(), nn.Linear(in_dim, out_dim))


def coarse_decoder(dim: int) -> nn.Sequential:
    """From stride 16 to 4."""
    first, second = conv_norm_relu(dim, WIDTH), conv_norm_relu(WIDTH, WIDTH)
    return nn.Sequential(*first, upsample(2), *second, upsample(2))


def upsample(factor: int) -> nn.Upsample:
    return nn.Upsample(scale_factor=factor, mode="bilinear")


def conv_norm_relu(in_dim: int, out_dim: int) -> list[nn.Module]:
    return [nn.Conv2d(in_dim, out_dim, 3, padding=1, bias=False), nn.GroupNorm(GROUPS, out_dim), nn.ReLU(inplace=True)]
