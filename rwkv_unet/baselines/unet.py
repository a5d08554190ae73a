"""U-Net: an encoder of convolutions and poolings, a decoder that gets every level's features beside the upsampled ones.

O. Ronneberger, P. Fischer, T. Brox, "U-Net: Convolutional Networks for Biomedical Image Segmentation", MICCAI 2015,
https://arxiv.org/abs/1505.04597, Figure 1. As the RWKV-UNet paper measures it: half the width (32 to 512), padded
convolutions with BatchNorm, transposed convolutions to upsample.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rwkv_unet.baselines.options import check_dims
from rwkv_unet.images import check_images

DIMS = (32, 64, 128, 256, 512)


class UNet(nn.Module):
    """Segments (B, in_channels, H, W) into logits (B, num_classes, H, W)."""

    def __init__(self, num_classes: int, in_channels: int = 3, *, dims: Sequence[int] = DIMS) -> None:
        super().__init__()
        check_dims(dims)
        self.in_channels, self.divisor = in_channels, 2 ** (len(dims) - 1)
        self.encoder = Encoder(in_channels, dims)
        deep_to_shallow = list(zip(dims[:0:-1], dims[-2::-1], strict=True))
        self.upsamplings = nn.ModuleList(nn.ConvTranspose2d(deep, dim, 2, stride=2) for deep, dim in deep_to_shallow)
        self.convs = nn.ModuleList(double_conv(2 * dim, dim) for _, dim in deep_to_shallow)
        self.head = nn.Conv2d(dims[0], num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, num_classes, H, W); ValueError for an image of the wrong shape."""
        *skips, x = self.encoder(check_images(x, in_channels=self.in_channels, divisor=self.divisor))
        for upsample, conv, skip in zip(self.upsamplings, self.convs, reversed(skips), strict=True):
            x = conv(torch.cat([skip, upsample(x)], 1))
        return self.head(x)


class Encoder(nn.Module):
    """Features (B, dims[i], H / 2^i, W / 2^i) of every level i."""

    def __init__(self, in_channels: int, dims: Sequence[int]) -> None:
        super().__init__()
        self.levels = nn.ModuleList(double_conv(i, o) for i, o in zip((in_channels, *dims), dims, strict=False))
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> list[Tensor]:
        features: list[Tensor] = []
        for level in self.levels:
            features.append(level(self.pool(features[-1]) if features else x))
        return features


def double_conv(in_dim: int, out_dim: int, mid_dim: int | None = None) -> nn.Sequential:
    """Two 3 x 3 convolutions, each with BatchNorm and ReLU."""
    mid_dim = mid_dim or out_dim
    return nn.Sequential(*conv_norm_relu(in_dim, mid_dim), *conv_norm_relu(mid_dim, out_dim))


def conv_norm_relu(in_dim: int, out_dim: int) -> list[nn.Module]:
    return [nn.Conv2d(in_dim, out_dim, 3, padding=1), nn.BatchNorm2d(out_dim), nn.ReLU(inplace=True)]
