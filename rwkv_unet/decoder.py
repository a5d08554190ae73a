"""The decoder: depthwise convolutions with large kernels, a skip connection before each but the first block."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from rwkv_unet.layers import ConvNormAct


class UpBlock(nn.Module):
    """(B, in_dim, H, W) -> (B, out_dim, 2H, 2W)."""

    def __init__(self, in_dim: int, out_dim: int, kernel_size: int) -> None:
        super().__init__()
        self.mix = ConvNormAct(in_dim, in_dim, nn.ReLU)
        self.local = ConvNormAct(in_dim, in_dim, nn.SiLU, kernel_size=kernel_size, groups=in_dim)
        self.project = ConvNormAct(in_dim, out_dim, nn.ReLU)
        self.upsample = nn.Upsample(scale_factor=2, mode="bilinear")

    def forward(self, x: Tensor) -> Tensor:
        return self.upsample(self.project(self.local(self.mix(x))))


class Decoder(nn.Module):
    """From stage IV back to full size.

    Takes (B, dims[3], H / 16, W / 16) and the `num_skips` shallowest of the stages' maps, deepest first; gives
    (B, out_dim, H, W).
    """

    def __init__(self, dims: Sequence[int], out_dim: int, *, kernel_size: int, num_skips: int) -> None:
        super().__init__()
        self.first_skip = len(dims) - num_skips
        widths = [*reversed(dims), out_dim]
        self.blocks = nn.ModuleList(
            UpBlock(in_dim * (2 if i >= self.first_skip else 1), dim, kernel_size)
            for i, (in_dim, dim) in enumerate(pairwise(widths))
        )

    def forward(self, x: Tensor, skips: Sequence[Tensor]) -> Tensor:
        for i, block in enumerate(self.blocks):
            if i >= self.first_skip:
                x = torch.cat([x, skips[i - self.first_skip]], dim=1)
            x = block(x)
        return x
