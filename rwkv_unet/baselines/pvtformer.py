"""PVTFormer: the three finest scales of a PVTv2, each decoded to full size beside a decoder of them all.

D. Jha et al., "CT Liver Segmentation via PVT-based Encoding and Refined Decoding", ISBI 2024,
https://arxiv.org/abs/2401.09630, its hierarchical decoding (Up block, Decoder block, residual blocks).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rwkv_unet.baselines.pvt import DIVISOR, pvt_encoder
from rwkv_unet.baselines.unet import double_conv
from rwkv_unet.images import check_images

WIDTH = 64
SCALES = 3


class PVTFormer(nn.Module):
    """Segments (B, in_channels, H, W) into logits (B, num_classes, H, W)."""

    divisor = DIVISOR

    def __init__(
        self, num_classes: int, in_channels: int = 3, *, encoder: str = "pvt_v2_b3", drop_path: float = 0.1
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.encoder = pvt_encoder(encoder, in_channels, drop_path, scales=SCALES)
        self.reductions = nn.ModuleList(
            nn.Sequential(nn.Conv2d(dim, WIDTH, 1), nn.BatchNorm2d(WIDTH), nn.ReLU(inplace=True))
            for dim in self.encoder.feature_info.channels()
        )
        self.decoder = nn.ModuleList(Residual(2 * WIDTH) for _ in range(SCALES - 1))
        self.full_size = nn.ModuleList(Residual(WIDTH) for _ in range(SCALES + 1))  # the decoder's and every scale's
        self.join = Residual((SCALES + 1) * WIDTH)
        self.head = nn.Conv2d(WIDTH, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, num_classes, H, W); ValueError for an image of the wrong shape."""
        x = check_images(x, in_channels=self.in_channels, divisor=self.divisor)
        scales = [reduce(y) for reduce, y in zip(self.reductions, self.encoder(x), strict=True)]
        *shallow, y = scales
        for block, skip in zip(self.decoder, reversed(shallow), strict=True):
            y = block(torch.cat([upsample(y, 2), skip], 1))
        full = [
            block(upsample(y, x.shape[2] // y.shape[2])) for block, y in zip(self.full_size, [y, *scales], strict=True)
        ]
        return self.head(self.join(torch.cat(full, 1)))


class Residual(nn.Module):
    """Two 3 x 3 convolutions beside one of 1 x 1, each with BatchNorm: (B, C, H, W) -> (B, WIDTH, H, W)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.convs = double_conv(dim, WIDTH)[:-1]
        self.shortcut = nn.Sequential(nn.Conv2d(dim, WIDTH, 1), nn.BatchNorm2d(WIDTH))
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.convs(x) + self.shortcut(x))


def upsample(x: Tensor, factor: int) -> Tensor:
    return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=True)
