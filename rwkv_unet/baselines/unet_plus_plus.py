"""UNet++: a U-Net with a node at every level for every depth of decoder, all nodes of a level connected.

Z. Zhou, M. Siddiquee, N. Tajbakhsh, J. Liang, "UNet++: A Nested U-Net Architecture for Medical Image Segmentation",
DLMIA 2018, https://arxiv.org/abs/1807.10165, Figure 1, equation 1. Without deep supervision: the logits are those of
the deepest decoder.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rwkv_unet.baselines.options import check_dims
from rwkv_unet.baselines.unet import DIMS, double_conv
from rwkv_unet.images import check_images


class UNetPlusPlus(nn.Module):
    """Segments (B, in_channels, H, W) into logits (B, num_classes, H, W)."""

    def __init__(self, num_classes: int, in_channels: int = 3, *, dims: Sequence[int] = DIMS) -> None:
        super().__init__()
        check_dims(dims)
        self.levels = len(dims)
        self.in_channels, self.divisor = in_channels, 2 ** (self.levels - 1)
        self.nodes = nn.ModuleDict()
        for level, dim in enumerate(dims):
            above = dims[level - 1] if level else in_channels
            self.nodes[f"{level}_0"] = double_conv(above, dim)
            for column in range(1, self.levels - level):
                self.nodes[f"{level}_{column}"] = double_conv(column * dim + dims[level + 1], dim)
        self.pool = nn.MaxPool2d(2)
        self.upsample = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
        self.head = nn.Conv2d(dims[0], num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, num_classes, H, W); ValueError for an image of the wrong shape."""
        x = check_images(x, in_channels=self.in_channels, divisor=self.divisor)
        rows: list[list[Tensor]] = []  # rows[i][j]: node j of level i, (B, dims[i], H / 2^i, W / 2^i)
        for level in range(self.levels):
            rows.append([self.nodes[f"{level}_0"](self.pool(rows[-1][0]) if rows else x)])
            for up in reversed(range(level)):
                column = len(rows[up])
                rows[up].append(
                    self.nodes[f"{up}_{column}"](torch.cat([*rows[up], self.upsample(rows[up + 1][-1])], 1))
                )
        return self.head(rows[0][-1])
