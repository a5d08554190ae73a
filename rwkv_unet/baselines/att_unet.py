"""Attention U-Net: a U-Net whose skip connections are gated by what the decoder looks for.

O. Oktay et al., "Attention U-Net: Learning Where to Look for the Pancreas", MIDL 2018,
https://arxiv.org/abs/1804.03999, Figures 1 and 2, equations 1 and 2.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rwkv_unet.baselines.options import check_dims
from rwkv_unet.baselines.unet import DIMS, Encoder, conv_norm_relu, double_conv
from rwkv_unet.images import check_images


class AttentionUNet(nn.Module):
    """Segments (B, in_channels, H, W) into logits (B, num_classes, H, W)."""

    def __init__(self, num_classes: int, in_channels: int = 3, *, dims: Sequence[int] = DIMS) -> None:
        super().__init__()
        check_dims(dims)
        self.in_channels, self.divisor = in_channels, 2 ** (len(dims) - 1)
        self.encoder = Encoder(in_channels, dims)
        deep_to_shallow = list(zip(dims[:0:-1], dims[-2::-1], strict=True))
        self.upsamplings = nn.ModuleList(
            nn.Sequential(nn.Upsample(scale_factor=2), *conv_norm_relu(deep, dim)) for deep, dim in deep_to_shallow
        )
        self.gates = nn.ModuleList(AttentionGate(dim, dim // 2) for _, dim in deep_to_shallow)
        self.convs = nn.ModuleList(double_conv(2 * dim, dim) for _, dim in deep_to_shallow)
        self.head = nn.Conv2d(dims[0], num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, num_classes, H, W); ValueError for an image of the wrong shape."""
        *skips, x = self.encoder(check_images(x, in_channels=self.in_channels, divisor=self.divisor))
        for upsample, gate, conv, skip in zip(self.upsamplings, self.gates, self.convs, reversed(skips), strict=True):
            x = upsample(x)
            x = conv(torch.cat([gate(skip, x), x], 1))
        return self.head(x)


class AttentionGate(nn.Module):
    """Equations 1 and 2: every position of a skip (B, C, H, W) is weighted by how it fits the signal (B, C, H, W)."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.skip = nn.Sequential(nn.Conv2d(dim, hidden, 1), nn.BatchNorm2d(hidden))
        self.signal = nn.Sequential(nn.Conv2d(dim, hidden, 1), nn.BatchNorm2d(hidden))
        self.relu = nn.ReLU(inplace=True)
        self.weight = nn.Sequential(nn.Conv2d(hidden, 1, 1), nn.BatchNorm2d(1), nn.Sigmoid())

    def forward(self, skip: Tensor, signal: Tensor) -> Tensor:
        return skip * self.weight(self.relu(self.skip(skip) + self.signal(signal)))
