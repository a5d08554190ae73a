"""What the networks for volumes are made of: the blocks of RWKV-UNet (Fig. 2) with one axis more."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn

from rwkv_unet.attention.spatial_mix_nd import SpatialMixND
from rwkv_unet.channel_mix import ChannelMix
from rwkv_unet.layers import NORM_EPS

Triple = tuple[int, int, int]
"""Along depth, height and width."""

NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": lambda dim: nn.BatchNorm3d(dim, eps=NORM_EPS),
    "instance": lambda dim: nn.InstanceNorm3d(dim, affine=True),
    "group": lambda dim: nn.GroupNorm(math.gcd(dim, 8), dim),
}
"""Norms between convolutions. All but "batch" are the same for a patch whatever it is in a batch with."""


def kernel(k: int, along: Triple) -> Triple:
    """A kernel of k x k that looks at most one slice to either side, and not at all along the axes where `along` is
    1."""
    depth, height, width = (size if each > 1 else 1 for size, each in zip((min(k, 3), k, k), along, strict=True))
    return depth, height, width


class ConvNormAct3D(nn.Sequential):
    """Convolution without bias, norm, activation: (B, in_dim, D, H, W) -> (B, out_dim, D', H', W')."""

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        act: type[nn.Module],
        *,
        norm: str,
        kernel: Triple = (1, 1, 1),
        stride: Triple = (1, 1, 1),
        groups: int = 1,
    ) -> None:
        depth, height, width = (size // 2 for size in kernel)
        super().__init__(
            nn.Conv3d(in_dim, out_dim, kernel, stride, (depth, height, width), groups=groups, bias=False),
            NORMS[norm](out_dim),
            act(inplace=True),
        )


class LayerNorm3d(nn.LayerNorm):
    """LayerNorm over the channels of (B, C, D, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class Block3D(nn.Module):
    """`rwkv_unet.blocks.GLSP` for volumes: (B, in_dim, D, H, W) -> (B, out_dim, D', H', W').

    `along` has 1 for the axes along which the depthwise convolution does not look; `first_norm` is that of the input.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        expansion: float,
        first_norm: nn.Module,
        norm: str,
        along: Triple,
        stride: Triple = (1, 1, 1),
        attention: bool = False,
        residual: bool = False,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        dim = int(in_dim * expansion)
        self.residual = residual
        self.norm = first_norm
        self.expand = ConvNormAct3D(in_dim, dim, nn.ReLU, norm=norm)
        self.attention = nn.Sequential(SpatialMixND(dim, axes=3), nn.LayerNorm(dim)) if attention else None
        self.local = ConvNormAct3D(dim, dim, nn.SiLU, norm=norm, kernel=kernel(5, along), stride=stride, groups=dim)
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
