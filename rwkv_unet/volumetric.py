"""RWKV-UNet for volumes, the paper's future work: 3-D convolutions, and Bi-WKV over depth, height and width.

The net is that of the paper (Fig. 2) with one axis more. Slices are often thicker than pixels are wide, so the first
`flat_stages` stages leave the depth as it is and look along height and width alone; the others halve all three axes
and look one slice to either side.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn

from rwkv_unet.attention.spatial_mix_nd import SpatialMixND
from rwkv_unet.channel_mix import ChannelMix
from rwkv_unet.config import ModelConfig, model_config
from rwkv_unet.images import check_images
from rwkv_unet.layers import NORM_EPS
from rwkv_unet.rwkv_unet_enc import init_linear, not_weights

FIELDS_OF_IMAGES = ("attention", "shift", "scan", "shallow_attention", "glsp_channel_mix", "encoder")


class RWKVUNet3D(nn.Module):
    """Segments (B, in_channels, D, H, W) into logits (B, num_classes, D, H, W).

    Fields of the config are those of RWKVUNet; the stem has no squeeze-excite, and with fewer skips than three the CCM
    takes those alone.
    H and W may be any multiples of 16 and D any multiple of 2^(4 - flat_stages); `divisor` has all three.
    """

    def __init__(self, config: ModelConfig, *, flat_stages: int = 1) -> None:
        super().__init__()
        if flat_stages not in range(5):
            raise ValueError(f"model.flat_stages must be 0, 1, 2, 3 or 4, not {flat_stages!r}")
        self.config = config
        self.divisor = (2 ** (4 - flat_stages), 16, 16)
        self.stem = Block3D(
            config.in_channels,
            config.stem_dim,
            expansion=max(1, 3 / config.in_channels),  # three channels inside, as for images
            norm=nn.Identity(),
            flat=flat_stages > 0,
        )
        self.stages = _stages(config, flat_stages)
        self.ccm = _ccm(config)
        self.decoder = _decoder(config, flat_stages)
        self.head = nn.Conv3d(config.stem_dim, config.num_classes, 1)
        for part in (self.stem, self.stages):
            part.apply(init_linear)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, num_classes, D, H, W); ValueError for a volume of the wrong shape."""
        x = self.stem(check_images(x, in_channels=self.config.in_channels, divisor=self.divisor))
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        skips = features[: self.config.num_skips][::-1]  # deepest first
        if self.ccm is not None:
            skips = self.ccm(skips)
        first_skip = len(self.decoder) - len(skips)
        for i, block in enumerate(self.decoder):
            x = block(torch.cat([x, skips[i - first_skip]], dim=1) if i >= first_skip else x)
        return self.head(x)

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that are no weights (timm's optimizer factory asks)."""
        return not_weights(self)


def create_rwkv_unet_3d(name: str, *, flat_stages: int = 1, **fields: Any) -> RWKVUNet3D:
    """A volumetric net; ValueError for a field that images alone have, an unknown one, or a bad value."""
    for field in FIELDS_OF_IMAGES:
        if field in fields:
            raise ValueError(f"model.{field} does not apply to {name}, whose attention is over three axes")
    return RWKVUNet3D(model_config(name, **fields), flat_stages=flat_stages)


class ConvNormAct3D(nn.Sequential):
    """Convolution without bias, BatchNorm, activation: (B, in_dim, D, H, W) -> (B, out_dim, D', H', W').

    The kernel is (1, k, k) if `flat`, else (3, k, k), and (1, 1, 1) for k = 1.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        act: type[nn.Module],
        *,
        k: int = 1,
        flat: bool = True,
        stride: int = 1,
        groups: int = 1,
    ) -> None:
        depth = 1 if flat else min(k, 3)
        strides = (1 if flat else stride, stride, stride)
        padding = (depth // 2, k // 2, k // 2)
        super().__init__(
            nn.Conv3d(in_dim, out_dim, (depth, k, k), strides, padding, groups=groups, bias=False),
            nn.BatchNorm3d(out_dim, eps=NORM_EPS),
            act(inplace=True),
        )


class LayerNorm3d(nn.LayerNorm):
    """LayerNorm over the channels of (B, C, D, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class Block3D(nn.Module):
    """`rwkv_unet.blocks.GLSP` for volumes: (B, in_dim, D, H, W) -> (B, out_dim, D', H', W')."""

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        expansion: float,
        norm: nn.Module,
        flat: bool,
        stride: int = 1,
        attention: bool = False,
        residual: bool = False,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        dim = int(in_dim * expansion)
        self.residual = residual
        self.norm = norm
        self.expand = ConvNormAct3D(in_dim, dim, nn.ReLU)
        self.attention = nn.Sequential(SpatialMixND(dim, axes=3), nn.LayerNorm(dim)) if attention else None
        self.local = ConvNormAct3D(dim, dim, nn.SiLU, k=5, flat=flat, stride=stride, groups=dim)
        self.project = nn.Conv3d(dim, out_dim, 1, bias=False)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        wide = self.expand(self.norm(x))
        if self.attention is not None:
            tokens = wide.movedim(1, -1)  # (B, D, H, W, C)
            wide = (tokens + self.drop_path(self.attention(tokens))).movedim(-1, 1)
        local = self.local(wide)
        return x + self.drop_path(self.project(wide + local)) if self.residual else self.project(local)


class CrossChannelMix3D(nn.Module):
    """`rwkv_unet.ccm.CrossChannelMix` for volumes: takes and returns (B, dims[i], D_i, H_i, W_i), deepest first."""

    def __init__(self, dims: Sequence[int], *, hidden_rate: int, drop_path: float) -> None:
        super().__init__()
        width = dims[-1]
        total = width * len(dims)
        self.project_in = nn.ModuleList(nn.Conv3d(dim, width, 1) for dim in dims)
        self.channel_mix = nn.Sequential(ChannelMix(total, hidden_rate), nn.LayerNorm(total))
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.project_out = nn.ModuleList(nn.Conv3d(width, dim, 1) for dim in dims)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        size = features[-1].shape[2:]
        same = [_resize(project(x), size) for project, x in zip(self.project_in, features, strict=True)]
        tokens = torch.cat(same, dim=1).movedim(1, -1)  # (B, D, H, W, C)
        tokens = tokens + self.drop_path(self.channel_mix(tokens))
        mixed = tokens.movedim(-1, 1).chunk(len(features), dim=1)
        return [
            project(_resize(part, x.shape[2:]))
            for project, part, x in zip(self.project_out, mixed, features, strict=True)
        ]


def _resize(x: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(x, size=tuple(size), mode="trilinear", align_corners=False)


def _stages(config: ModelConfig, flat_stages: int) -> nn.ModuleList:
    """Stages I to IV: the first block of each halves, the others keep the size, with attention in III and IV."""
    rates = iter(torch.linspace(0, config.drop_path, sum(config.depths), device="cpu").tolist())
    stages = nn.ModuleList()
    for i, (in_dim, dim) in enumerate(pairwise([config.stem_dim, *config.dims])):
        blocks = nn.Sequential()
        for j in range(config.depths[i]):
            first, width = j == 0, in_dim if j == 0 else dim
            blocks.append(
                Block3D(
                    width,
                    dim,
                    expansion=config.expansions[i] * (2 if first else 1),
                    norm=nn.BatchNorm3d(width, eps=NORM_EPS) if i < 2 else LayerNorm3d(width, eps=NORM_EPS),
                    flat=i < flat_stages,
                    stride=2 if first else 1,
                    attention=i >= 2 and not first,
                    residual=not first,
                    drop_path=next(rates),
                )
            )
        stages.append(blocks)
    return stages


def _ccm(config: ModelConfig) -> CrossChannelMix3D | None:
    if not config.ccm or config.num_skips == 0:
        return None
    dims = config.dims[config.num_skips - 1 :: -1]  # deepest first
    return CrossChannelMix3D(dims, hidden_rate=config.ccm_hidden_rate, drop_path=config.drop_path)


def _decoder(config: ModelConfig, flat_stages: int) -> nn.ModuleList:
    """A block for each stage, the deepest first, which undoes that stage's halving."""
    blocks = nn.ModuleList()
    for i, (in_dim, out_dim) in enumerate(pairwise([*config.dims[::-1], config.stem_dim])):
        dim = in_dim * (2 if i >= 4 - config.num_skips else 1)
        flat = 3 - i < flat_stages
        blocks.append(
            nn.Sequential(
                ConvNormAct3D(dim, dim, nn.ReLU),
                ConvNormAct3D(dim, dim, nn.SiLU, k=config.decoder_kernel_size, flat=flat, groups=dim),
                ConvNormAct3D(dim, out_dim, nn.ReLU),
                nn.Upsample(scale_factor=(1 if flat else 2, 2, 2), mode="trilinear"),
            )
        )
    return blocks
