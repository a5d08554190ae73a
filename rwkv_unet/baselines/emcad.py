"""EMCAD: a PVTv2 encoder and a light decoder of grouped attention gates and depthwise convolutions of several sizes.

M. M. Rahman, M. Munir, R. Marculescu, "EMCAD: Efficient Multi-scale Convolutional Attention Decoding for Medical Image
Segmentation", CVPR 2024, https://arxiv.org/abs/2405.06880, Figure 2 (MSCAM, MSCB, LGAG, EUCB). The logits are
those of the shallowest scale, as the authors test; the other three scales have heads for deep supervision alone.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rwkv_unet.baselines.pvt import DIVISOR, ChannelAttention, SpatialAttention, pvt_encoder
from rwkv_unet.images import check_images

KERNELS = (1, 3, 5)
EXPANSION = 2


class EMCAD(nn.Module):
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
        super().__init__()
        self.in_channels, self.deep_supervision = in_channels, deep_supervision
        self.encoder = pvt_encoder(encoder, in_channels, drop_path)
        deepest, *dims = reversed(self.encoder.feature_info.channels())
        self.upsamplings = nn.ModuleList(up_convolution(i, o) for i, o in zip([deepest, *dims], dims, strict=False))
        self.gates = nn.ModuleList(GroupedAttentionGate(dim) for dim in dims)
        self.channel_attentions = nn.ModuleList(ChannelAttention(dim) for dim in [deepest, *dims])
        self.spatial_attention = SpatialAttention()  # the same at every scale
        self.convs = nn.ModuleList(MultiScaleConv(dim) for dim in [deepest, *dims])
        self.head = nn.Conv2d(dims[-1], num_classes, 1)
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d) and not name.startswith(("encoder", "head")):
                nn.init.normal_(module.weight, std=0.02)
        if deep_supervision:  # last, so that a seed gives all other weights the values that they have without
            self.deeper_heads = nn.ModuleList(nn.Conv2d(dim, num_classes, 1) for dim in [deepest, *dims[:-1]])

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Logits (B, num_classes, H, W), or a list of them; ValueError for an image of the wrong shape."""
        x = check_images(x, in_channels=self.in_channels, divisor=self.divisor)
        *skips, y = self.encoder(x)
        scales = [self._attend(0, y)]
        for i, skip in enumerate(reversed(skips)):
            up = self.upsamplings[i](scales[-1])
            scales.append(self._attend(i + 1, up + self.gates[i](skip, up)))
        logits = F.interpolate(self.head(scales[-1]), x.shape[2:], mode="bilinear")
        if not (self.deep_supervision and self.training):
            return logits
        deeper = zip(self.deeper_heads, scales[:-1], strict=True)
        return [*(F.interpolate(head(y), x.shape[2:], mode="bilinear") for head, y in deeper), logits]

    @staticmethod
    def combined(maps: list[Tensor]) -> Tensor:
        """The logits that are evaluated, from those of all scales."""
        return maps[-1]

    def _attend(self, scale: int, x: Tensor) -> Tensor:
        """MSCAM: channel attention, spatial attention, convolutions of several sizes."""
        return self.convs[scale](self.spatial_attention(self.channel_attentions[scale](x)))


class MultiScaleConv(nn.Module):
    """MSCB: widen, sum of depthwise convolutions of every size, shuffle, narrow; with a shortcut."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        hidden = EXPANSION * dim
        self.widen = conv_norm_relu6(dim, hidden)
        self.depthwise = nn.ModuleList(conv_norm_relu6(hidden, hidden, kernel, groups=hidden) for kernel in KERNELS)
        self.shuffle = nn.ChannelShuffle(dim)
        self.narrow = nn.Sequential(nn.Conv2d(hidden, dim, 1, bias=False), nn.BatchNorm2d(dim))

    def forward(self, x: Tensor) -> Tensor:
        wide = self.widen(x)
        sizes = torch.stack([conv(wide) for conv in self.depthwise]).sum(0)
        return x + self.narrow(self.shuffle(sizes))


def conv_norm_relu6(in_dim: int, out_dim: int, kernel: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(in_dim, out_dim, kernel, padding=kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_dim), nn.ReLU6(inplace=True))


class GroupedAttentionGate(nn.Module):
    """LGAG: a skip (B, C, H, W) weighted by grouped 3 x 3 convolutions of it and of the signal."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        hidden = dim // 2
        self.skip, self.signal = (
            nn.Sequential(nn.Conv2d(dim, hidden, 3, padding=1, groups=hidden), nn.BatchNorm2d(hidden)) for _ in range(2)
        )
        self.relu = nn.ReLU(inplace=True)
        self.weight = nn.Sequential(nn.Conv2d(hidden, 1, 1), nn.BatchNorm2d(1), nn.Sigmoid())

    def forward(self, skip: Tensor, signal: Tensor) -> Tensor:
        return skip * self.weight(self.relu(self.skip(skip) + self.signal(signal)))


def up_convolution(in_dim: int, out_dim: int) -> nn.Sequential:
    """EUCB: twice the size, depthwise convolution, BatchNorm, ReLU, another width."""
    return nn.Sequential(
        nn.Upsample(scale_factor=2),
        nn.Conv2d(in_dim, in_dim, 3, padding=1, groups=in_dim, bias=False),
        nn.BatchNorm2d(in_dim),
        nn.ReLU(inplace=True),
        nn.Conv2d(in_dim, out_dim, 1),
    )
