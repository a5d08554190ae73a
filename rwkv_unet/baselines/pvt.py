"""The encoder of PVT-CASCADE, EMCAD and others, Pyramid Vision Transformer v2, and attention that decoders share.

W. Wang et al., "PVT v2: Improved Baselines with Pyramid Vision Transformer", CVMJ 2022, https://arxiv.org/abs/2106.13797.
"""

from __future__ import annotations

from typing import Any

import timm
import torch
from torch import Tensor, nn

from rwkv_unet.config import suggest

DIVISOR = 32


def pvt_encoder(name: str, in_channels: int, drop_path: float, *, scales: int = 4) -> Any:
    """timm's (B, in_channels, H, W) -> features of strides 4, 8, 16 and 32, or the first of them; random weights."""
    known = timm.list_models("pvt_v2_b?")
    if name not in known:
        raise ValueError(f"model.encoder: unknown PVTv2 {name!r}; {suggest(name, known)}")
    return timm.create_model(
        name,
        pretrained=False,
        features_only=True,
        out_indices=tuple(range(scales)),
        in_chans=in_channels,
        drop_path_rate=drop_path,
    )


class ChannelAttention(nn.Module):
    """Weighs every channel by a two-layer network of its mean and its maximum (CBAM, https://arxiv.org/abs/1807.06521)."""

    def __init__(self, dim: int, reduction: int = 16) -> None:
        super().__init__()
        self.mean, self.max = nn.AdaptiveAvgPool2d(1), nn.AdaptiveMaxPool2d(1)
        self.reduce = nn.Conv2d(dim, dim // reduction, 1, bias=False)
        self.act = nn.ReLU()
        self.expand = nn.Conv2d(dim // reduction, dim, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        by_mean, by_max = (self.expand(self.act(self.reduce(pool(x)))) for pool in (self.mean, self.max))
        return x * torch.sigmoid(by_mean + by_max)


class SpatialAttention(nn.Module):
    """Weighs every position by a convolution of the mean and the maximum over its channels (CBAM)."""

    def __init__(self, kernel_size: int = 7, *, bias: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        pooled = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        return x * torch.sigmoid(self.conv(pooled))
