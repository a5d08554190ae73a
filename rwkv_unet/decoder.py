"""The decoder: depthwise convolutions with large kernels, a skip connection before each but the first block."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from rwkv_unet.layers import ConvNormAct, without_autocast


class UpBlock(nn.Module):
    """(B, in_dim, H, W) -> (B, out_dim, 2H, 2W)."""

    def __init__(self, in_dim: int, out_dim: int, kernel_size: int) -> None:
        super().__init__()
        self.mix = ConvNormAct(in_dim, in_dim, nn.ReLU)
        self.local = ConvNormAct(in_dim, in_dim, nn.SiLU, kernel_size=kernel_size, groups=in_dim)
        self.project = ConvNormAct(in_dim, out_dim, nn.ReLU)
        self.upsample = nn.Upsample(scale_factor=2, mode="bilinear")

    def forward(self, x: Tensor) -> Tensor:
        x = self.project(self.local(self.mix(x)))
        with without_autocast():
            return self.upsample(x)


class Decoder(nn.Module):
    """From stage IV back to full size, twice as large with every block.

    Takes (B, dims[3], h, w) and the `num_skips` shallowest of the stages' maps, deepest first. A block for each stage,
    and `extra_blocks` without a skip connection for an encoder whose first stage is reduced more than twice; gives
    (B, out_dim, 16 h, 16 w) without them.
    """

    def __init__(
        self, dims: Sequence[int], out_dim: int, *, kernel_size: int, num_skips: int, extra_blocks: int = 0
    ) -> None:
        super().__init__()
        self.skips_at = range(len(dims) - num_skips, len(dims))
        widths = [*reversed(dims), *[out_dim] * (1 + extra_blocks)]
        self.blocks = nn.ModuleList(
            UpBlock(in_dim * (2 if i in self.skips_at else 1), dim, kernel_size)
            for i, (in_dim, dim) in enumerate(pairwise(widths))
        )

    def forward(self, x: Tensor, skips: Sequence[Tensor]) -> Tensor:
        for i, block in enumerate(self.blocks):
            if i in self.skips_at:
                x = torch.cat([x, skips[i - self.skips_at.start]], dim=1)
            x = block(x)
        return x
