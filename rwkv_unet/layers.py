"""Small layers that the blocks are made of."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_module
from torch import Tensor, nn

NORM_EPS = 1e-6  # of the norms between convolutions; norms of the token and channel mixers keep PyTorch's 1e-5


class ConvNormAct(nn.Module):
    """Convolution without bias, BatchNorm, activation: (B, in_dim, H, W) -> (B, out_dim, H / stride, W / stride)."""

    def __init__(
        self, in_dim: int, out_dim: int, act: type[nn.Module], *, kernel_size: int = 1, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__()
        padding = (kernel_size - stride + 1) // 2
        self.conv = nn.Conv2d(in_dim, out_dim, kernel_size, stride, padding, groups=groups, bias=False)
        self.norm: nn.Module = nn.BatchNorm2d(out_dim, eps=NORM_EPS)
        self.act = act(inplace=act is nn.ReLU)  # in place, SiLU would copy its input for the gradient

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.conv(x)))


@register_notrace_module  # torch.fx cannot follow a question about the device
class LayerNorm(nn.LayerNorm):
    """LayerNorm in its input's dtype, under autocast too (torch's gives float32 on CUDA); it sums in float32 anyway."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_scripting() or not x.is_cuda:
            return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        with without_autocast():  # then CUDA wants weights of the same dtype
            return F.layer_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


class LayerNorm2d(nn.Module):
    """LayerNorm over the channels of (B, C, H, W). The output's memory is (B, H, W, C)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = LayerNorm(dim, eps=NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class SqueezeExcite(nn.Module):
    """Gates every channel of (B, C, H, W) by a two-layer network of all channels' means."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(dim, dim, 1)
        self.act = nn.SiLU()
        self.expand = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.expand(self.act(self.reduce(x.mean((2, 3), keepdim=True))))
        return x * torch.sigmoid(gate)


def q_shift(x: Tensor) -> Tensor:
    """Shift equal parts of the channels of (B, *spatial, C) by one step, forth and back on every axis; zeros come in.

    In an image quarters of the channels move right, left, down and up; they end at C // 4, C // 2, 3C // 4 and C. In a
    volume sixths do, and the last two move along its first axis.
    """
    channels, axes = x.shape[-1], x.ndim - 2
    parts = x.tensor_split([channels * i // (2 * axes) for i in range(1, 2 * axes)], dim=-1)
    shifted: list[Tensor] = []
    for i in range(axes):
        axis = axes - i
        inner, before, after = x.shape[axis] - 1, [0] * (2 * i + 4), [0] * (2 * i + 4)
        before[-2], after[-1] = 1, 1
        shifted.append(F.pad(parts[2 * i].narrow(axis, 0, inner), before))
        shifted.append(F.pad(parts[2 * i + 1].narrow(axis, 1, inner), after))
    return torch.cat(shifted, dim=-1)


class TokenMix(nn.Module):
    """A learned blend, channel by channel, of a token and its shifted neighbour, both (B, *spatial, C)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.ratio = nn.Parameter(torch.full((dim,), 0.5))

    def forward(self, x: Tensor, shifted: Tensor) -> Tensor:
        return torch.lerp(shifted, x, self.ratio.to(x.dtype))


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear to (B, C, *size), in x's dtype; x itself if it has that size."""
    if x.shape[2:] == tuple(size):
        return x
    with without_autocast():
        return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


def without_autocast() -> torch.autocast:
    """Around norms and resizing, which autocast on CUDA (no other device) would run in float32 and leave in it."""
    return torch.autocast("cuda", enabled=False)
