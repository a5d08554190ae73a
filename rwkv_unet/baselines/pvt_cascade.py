"""PVT-CASCADE: a PVTv2 encoder and a decoder of attention gates and convolutional attention at four scales.

M. M. Rahman, R. Marculescu, "Medical Image Segmentation via Cascaded Attention Decoding", WACV 2023,
Figure 1 (AG, CAM, UpConv). The logits are the sum of those of the four scales, as the authors test.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rwkv_unet.baselines.att_unet import AttentionGate
from rwkv_unet.baselines.pvt import DIVISOR, ChannelAttention, SpatialAttention, pvt_encoder
from rwkv_unet.baselines.unet import conv_norm_relu, double_conv
from rwkv_unet.images import check_images


class Cascade(nn.Module):
    """Any encoder of four scales, each half the size of the one before, and the decoder of CASCADE.

    `dims` are the widths of the encoder's features, shallowest first.
    """

    divisor: int
    align_corners = False
    dropout = 0.0
    """Of the logits."""

    def __init__(
        self, num_classes: int, in_channels: int, encoder: nn.Module, dims: Sequence[int], *, deep_supervision: bool
    ) -> None:
        super().__init__()
        self.in_channels, self.deep_supervision = in_channels, deep_supervision
        self.encoder = encoder
        deepest, *dims = list(reversed(dims))
        self.bridge = nn.Conv2d(deepest, deepest, 1)
        self.upsamplings = nn.ModuleList(
            nn.Sequential(nn.Upsample(scale_factor=2), *conv_norm_relu(i, o))
            for i, o in zip([deepest, *dims], dims, strict=False)
        )
        hidden = [*dims[1:], 32]
        self.gates = nn.ModuleList(AttentionGate(dim, h) for dim, h in zip(dims, hidden, strict=True))
        widths = [deepest, *(2 * dim for dim in dims)]
        self.channel_attentions = nn.ModuleList(ChannelAttention(width) for width in widths)
        self.spatial_attention = SpatialAttention()  # the same at every scale
        self.convs = nn.ModuleList(double_conv(i, o) for i, o in zip(widths, [deepest, *dims], strict=True))
        self.heads = nn.ModuleList(nn.Conv2d(dim, num_classes, 1) for dim in [deepest, *dims])
        self.drop = nn.Dropout(self.dropout)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Logits (B, num_classes, H, W), or a list of them; ValueError for an image of the wrong shape."""
        x = check_images(x, in_channels=self.in_channels, divisor=self.divisor)
        *skips, deepest = self._features(x)
        scales = [self._attend(0, self.bridge(deepest))]
        for i, skip in enumerate(reversed(skips)):
            up = self.upsamplings[i](scales[-1])
            scales.append(self._attend(i + 1, torch.cat([self.gates[i](skip, up), up], 1)))
        maps = [self._full_size(head(y), x.shape[2:]) for head, y in zip(self.heads, scales, strict=True)]
        return maps if self.deep_supervision and self.training else self.combined(maps)

    @staticmethod
    def combined(maps: list[Tensor]) -> Tensor:
        """The logits that are evaluated, from those of all scales."""
        return torch.stack(maps).sum(0)

    def _features(self, x: Tensor) -> list[Tensor]:
        """The encoder's features, shallowest first."""
        features: list[Tensor] = self.encoder(x)
        return features

    def _full_size(self, logits: Tensor, size: Sequence[int]) -> Tensor:
        return self.drop(F.interpolate(logits, tuple(size), mode="bilinear", align_corners=self.align_corners))

    def _attend(self, scale: int, x: Tensor) -> Tensor:
        """CAM: channel attention, spatial attention, two convolutions."""
        return self.convs[scale](self.spatial_attention(self.channel_attentions[scale](x)))


class PVTCascade(Cascade):
    """Segments (B, in_channels, H, W) into logits (B, num_classes, H, W).

    Args:
        deep_supervision: in training mode give the logits of all four scales, of the image's size, the deepest first.
    """

    divisor = DIVISOR

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 3,
        *,
        encoder: str = "pvt_v2_b2",
        drop_path: float = 0.1,
        deep_supervision: bool = False,
    ) -> None:
        pvt = pvt_encoder(encoder, in_channels, drop_path)
        dims = pvt.feature_info.channels()
        super().__init__(num_classes, in_channels, pvt, dims, deep_supervision=deep_supervision)
