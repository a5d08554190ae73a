"""Spatial mix whose decay is apart for every axis, for images and volumes; beyond the paper.

The paper's spatial mix puts all tokens in one row, where the neighbour below is W steps away. Here the weight of one
token for another falls with the steps between them along each axis, e^{-(|x - i| w_x + |y - j| w_y)}.
"""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor, nn

from biwkv import bi_wkv_nd
from rwkv_unet.spatial_mix import SpatialMix


class SpatialMixND(SpatialMix):
    """Global attention, linear in the number of tokens: (B, *spatial, C) -> (B, *spatial, C), 1 to 3 axes."""

    def __init__(self, dim: int, axes: int, *, shift: str = "q") -> None:
        super().__init__(dim, shift=shift)
        self.decay = nn.Parameter(torch.zeros(axes, dim))  # from one token to the next along an axis: decay / size

    def attend(self, key: Tensor, value: Tensor) -> Tensor:
        sizes = key.shape[1:-1]
        decay = torch.stack([decay / size for decay, size in zip(self.decay, sizes, strict=True)])
        return bi_wkv_nd(decay, self.first / prod(sizes), key, value)
