"""What a spatial mix sees beside each token, by the names that `ModelConfig.shift` takes: (B, H, W, C) -> the same.

"q" is the paper's, of any number of axes.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_module
from torch import Tensor, nn

from rwkv_unet.layers import q_shift

SHIFTS = ("q", "omni", "deformable", "none")
PARTS = 4
"""Groups of channels that a deformable shift moves on their own."""


@register_notrace_module  # torch.fx cannot follow sizes that are computed with
class QShift(nn.Module):
    """Quarters of the channels from the four neighbours: (B, *spatial, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return q_shift(x)


class OmniShift(nn.Module):
    """A weighted sum of the token and depthwise convolutions of 1, 3 and 5 pixels, run as one of 5 (Restore-RWKV).

    Z. Yang et al., "Restore-RWKV: Efficient and Effective Medical Image Restoration with RWKV",
    https://arxiv.org/abs/2407.11087, Omni-Shift in Section III-C.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))
        self.one, self.three, self.five = (
            nn.Parameter(torch.empty(dim, 1, side, side).uniform_(-1, 1) / side) for side in (1, 3, 5)
        )

    def kernel(self) -> Tensor:
        """(C, 1, 5, 5): the sum of all four, which convolves as they do one by one."""
        token = F.pad(torch.ones_like(self.one), [2, 2, 2, 2])
        one, three = F.pad(self.one, [2, 2, 2, 2]), F.pad(self.three, [1, 1, 1, 1])
        return self.scale[0] * token + self.scale[1] * one + self.scale[2] * three + self.scale[3] * self.five

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.kernel().to(x.dtype)
        return F.conv2d(x.permute(0, 3, 1, 2), kernel, padding=2, groups=x.shape[3]).permute(0, 2, 3, 1)

    def merged(self) -> MergedShift:
        """The same with the sum made once, for a model that is no longer trained."""
        return MergedShift(self.kernel().detach())


class MergedShift(nn.Module):
    """A depthwise convolution of tokens with a kernel (C, 1, 5, 5)."""

    def __init__(self, kernel: Tensor) -> None:
        super().__init__()
        self.conv = nn.Conv2d(len(kernel), len(kernel), 5, padding=2, groups=len(kernel), bias=False)
        self.conv.weight.data = kernel

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


@register_notrace_module
class DeformableShift(nn.Module):
    """Quarters of the channels from up to one pixel away along both axes, by what is there (MD-RWKV-UNet).

    A small network gives the offsets, 0 at the start: a shift then is none. Between pixels it is bilinear, and zeros
    come in from outside.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.parts = PARTS
        hidden = max(dim // 4, 1)
        self.offsets = nn.Sequential(
            nn.Conv2d(dim, hidden, 3, padding=1, groups=math.gcd(dim, hidden, 4)),
            nn.GELU(),
            nn.Conv2d(hidden, 2 * PARTS, 3, padding=1),
        )
        for parameter in self.offsets[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[1], x.shape[2]
        maps = x.permute(0, 3, 1, 2)
        offsets = torch.tanh(self.offsets(maps).float()).permute(0, 2, 3, 1)  # (B, H, W, 2 PARTS), along x then y
        rows, columns = torch.meshgrid(
            torch.arange(height, device=x.device), torch.arange(width, device=x.device), indexing="ij"
        )
        places = torch.stack([columns, rows], dim=2).to(offsets.dtype)  # (H, W, 2)
        halves = torch.tensor([width, height], dtype=offsets.dtype, device=x.device) / 2
        shifted: list[Tensor] = []
        for part, offset in zip(maps.tensor_split(self.parts, dim=1), offsets.split(2, dim=3)):  # noqa: B905  TorchScript
            grid = (places + offset + 0.5) / halves - 1  # -1 and 1 are the outer edges of the first and last pixels
            sampled = F.grid_sample(part.float(), grid, mode="bilinear", padding_mode="zeros", align_corners=False)
            shifted.append(sampled.to(x.dtype))
        return torch.cat(shifted, dim=1).permute(0, 2, 3, 1)


def make_shift(name: str, dim: int) -> nn.Module:
    """The shift of that name; ValueError for an unknown one."""
    if name not in SHIFTS:
        raise ValueError(f"shift must be one of {', '.join(SHIFTS)}, not {name!r}")
    if name == "omni":
        return OmniShift(dim)
    if name == "deformable":
        return DeformableShift(dim)
    return QShift() if name == "q" else nn.Identity()
