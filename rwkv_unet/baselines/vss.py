"""What VM-UNet, Mamba-UNet and H-vmunet are built from: VMamba's visual state space block, patches and their merging.

Y. Liu et al., "VMamba: Visual State Space Model", NeurIPS 2024, https://arxiv.org/abs/2401.10166, SS2D in Section 4.2,
as of the first version (January 2024), which these networks have taken.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn

from rwkv_unet.attention.state_space import StateSpaces
from rwkv_unet.layers import LayerNorm

DIRECTIONS = 4
EXPAND = 2
PATCH = 4
LEVELS = 4


class SS2D(StateSpaces):
    """Four selective scans over (B, H, W, C) -> (B, H, W, C): rows and columns, each from the front and the back."""

    def __init__(self, dim: int) -> None:
        inner = EXPAND * dim
        super().__init__(DIRECTIONS, dim, inner)
        self.input = nn.Linear(dim, 2 * inner, bias=False)
        self.conv = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        self.norm = LayerNorm(inner)
        self.output = nn.Linear(inner, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        x, gate = self.input(x).chunk(2, dim=3)
        x = F.silu(self.conv(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
        rows, columns = x.flatten(1, 2), x.transpose(1, 2).flatten(1, 2)
        four = torch.stack([rows, columns, rows.flip(1), columns.flip(1)], dim=2)  # (B, T, 4, inner)
        rows, columns, rows_back, columns_back = self.scan(four).unbind(2)
        rows, columns = rows + rows_back.flip(1), columns + columns_back.flip(1)
        y = rows.unflatten(1, (height, width)) + columns.unflatten(1, (width, height)).transpose(1, 2)
        return self.output(self.norm(y) * F.silu(gate))


class VSSBlock(nn.Module):
    """x + SS2D(norm(x)) on (B, H, W, C)."""

    def __init__(self, dim: int, drop_path: float) -> None:
        super().__init__()
        self.norm, self.mix = LayerNorm(dim), SS2D(dim)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.mix(self.norm(x)))


def vss_blocks(dim: int, drop_paths: Sequence[float]) -> nn.Sequential:
    return nn.Sequential(*(VSSBlock(dim, drop_path) for drop_path in drop_paths))


class PatchEmbedding(nn.Sequential):
    """Patches of 4 x 4: (B, C, H, W) -> (B, H / 4, W / 4, dim), normalised."""

    def __init__(self, in_channels: int, dim: int) -> None:
        super().__init__(nn.Conv2d(in_channels, dim, PATCH, stride=PATCH), ChannelsLast(), LayerNorm(dim))


class ChannelsLast(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1)


class PatchMerging(nn.Module):
    """Four neighbours to one token: (B, H, W, C) -> (B, H / 2, W / 2, 2 C)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = LayerNorm(4 * dim)
        self.reduce = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2))  # (B, H / 2, 2, W / 2, 2, C)
        return self.reduce(self.norm(x.permute(0, 1, 3, 4, 2, 5).flatten(3)))


class PatchExpanding(nn.Module):
    """One token to `scale` x `scale`: (B, H, W, in_dim) -> (B, scale H, scale W, out_dim), normalised."""

    def __init__(self, in_dim: int, out_dim: int, scale: int = 2) -> None:
        super().__init__()
        self.scale = scale
        self.expand = nn.Linear(in_dim, scale**2 * out_dim, bias=False)
        self.norm = LayerNorm(out_dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.expand(x).unflatten(3, (self.scale, self.scale, -1))  # (B, H, W, scale, scale, out_dim)
        return self.norm(x.transpose(2, 3).flatten(3, 4).flatten(1, 2))


def doubling_dims(width: int) -> list[int]:
    """Widths of the levels, the first `width`, each twice the one before; ValueError for one that does not fit."""
    if not isinstance(width, int) or width < 4 or width % 4:
        raise ValueError(f"model.width must be a positive multiple of 4, not {width!r}")
    return [width * 2**level for level in range(LEVELS)]


def drop_paths(largest: float, depths: Sequence[int], *, falling: bool = False) -> list[list[float]]:
    """Stochastic depth of every block of every level, rising linearly from 0 to `largest`, or falling to 0."""
    rates = torch.linspace(0, largest, sum(depths), device="cpu").tolist()
    order = iter(rates[::-1] if falling else rates)
    return [[next(order) for _ in range(depth)] for depth in depths]
