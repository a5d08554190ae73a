"""U-KAN: a U-Net whose two deepest levels mix tokens with Kolmogorov-Arnold layers, functions learned as splines.

C. Li et al., "U-KAN Makes Strong Backbone for Medical Image Segmentation and Generation", AAAI 2025,
https://arxiv.org/abs/2406.02918, Figure 1 (tokenized KAN block); the splines are those of "KAN: Kolmogorov-Arnold
Networks", https://arxiv.org/abs/2404.19756, equations 2.10 and 2.11.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rwkv_unet.baselines.tokenized import DepthwiseConv, TokenizedUNet, init_weights
from rwkv_unet.baselines.unet import double_conv

DIMS = (32, 64, 256, 320, 512)
INTERVALS, ORDER = 5, 3
BASES = INTERVALS + ORDER


class UKAN(TokenizedUNet):
    """Segments (B, in_channels, H, W) into logits (B, num_classes, H, W)."""

    def __init__(self, num_classes: int, in_channels: int = 3, *, dims: Sequence[int] = DIMS) -> None:
        super().__init__(num_classes, in_channels, dims, encode=double_conv, decode=narrowing_conv, mix=KANMix)


def narrowing_conv(in_dim: int, out_dim: int) -> nn.Sequential:
    return double_conv(in_dim, out_dim, mid_dim=in_dim)


class KANMix(nn.Module):
    """Three times a Kolmogorov-Arnold layer and a depthwise convolution, on tokens (B, H, W, C)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(KANLinear(dim, dim) for _ in range(3))
        self.convs = nn.ModuleList(DepthwiseConv(dim) for _ in range(3))
        self.norms = nn.ModuleList(nn.BatchNorm2d(dim) for _ in range(3))
        self.act = nn.ReLU()
        self.convs.apply(init_weights)

    def forward(self, x: Tensor) -> Tensor:
        for layer, conv, norm in zip(self.layers, self.convs, self.norms, strict=True):
            x = conv(layer(x)).permute(0, 3, 1, 2)
            x = self.act(norm(x)).permute(0, 2, 3, 1)
        return x


class KANLinear(nn.Module):
    """y_j = sum_i a_ij SiLU(x_i) + s_ij sum_g c_ijg B_g(x_i) on the last axis, with cubic B-splines on [-1, 1]."""

    knots: Tensor

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.base = nn.Parameter(torch.empty(out_dim, in_dim))
        self.scale = nn.Parameter(torch.empty(out_dim, in_dim))
        self.coefficients = nn.Parameter(torch.empty(out_dim, in_dim, BASES))
        step = 2 / INTERVALS
        self.register_buffer("knots", torch.arange(-ORDER, BASES + 1) * step - 1, persistent=False)
        nn.init.kaiming_uniform_(self.base, a=math.sqrt(5))
        nn.init.kaiming_uniform_(self.scale, a=math.sqrt(5))
        nn.init.uniform_(self.coefficients, -0.05 / INTERVALS, 0.05 / INTERVALS)

    def forward(self, x: Tensor) -> Tensor:
        splines = self.coefficients * self.scale[:, :, None]
        bases = b_splines(x, self.knots.to(x.dtype))
        return F.linear(F.silu(x), self.base) + F.linear(bases.flatten(-2), splines.flatten(1))


def b_splines(x: Tensor, knots: Tensor) -> Tensor:
    """The cubic B-splines on equally spaced knots at x: (..., C) -> (..., C, BASES), by Cox and de Boor's recursion."""
    x = x[..., None]
    bases = ((x >= knots[:-1]) & (x < knots[1:])).to(x.dtype)  # order 0: which interval
    for order in range(1, ORDER + 1):
        width = knots[order] - knots[0]
        rising = (x - knots[: -order - 1]) / width * bases[..., :-1]
        falling = (knots[order + 1 :] - x) / width * bases[..., 1:]
        bases = rising + falling
    return bases
