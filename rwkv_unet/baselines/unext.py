"""UNeXt: a small U-Net whose two deepest levels mix tokens with MLPs over shifted channels.

J. M. J. Valanarasu, V. M. Patel, "UNeXt: MLP-based Rapid Medical Image Segmentation Network", MICCAI 2022,
https://arxiv.org/abs/2203.04967, Figure 2 (tokenized MLP block), equations 1 to 5.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rwkv_unet.baselines.tokenized import DepthwiseConv, TokenizedUNet, init_weights

DIMS = (16, 32, 128, 160, 256)
SMALL_DIMS = (8, 16, 32, 64, 128)  # UNeXt-S
SHIFTS = (-2, -1, 0, 1, 2)


class UNeXt(TokenizedUNet):
    """Segments (B, in_channels, H, W) into logits (B, num_classes, H, W)."""

    def __init__(self, num_classes: int, in_channels: int = 3, *, dims: Sequence[int] = DIMS) -> None:
        super().__init__(num_classes, in_channels, dims, encode=conv_norm, decode=conv_norm, mix=ShiftedMlp)
        self.decoder_convs[-1] = nn.Conv2d(dims[0], dims[0], 3, padding=1)  # the last one has no norm


class ShiftedMlp(nn.Module):
    """Equations 1 to 5: two linear layers, before each of which groups of channels move along one axis."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.local = DepthwiseConv(dim)
        self.act = nn.GELU()
        self.apply(init_weights)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(shift(x, axis=1))
        return self.fc2(shift(self.act(self.local(x)), axis=2))


def shift(x: Tensor, axis: int) -> Tensor:
    """Move five groups of channels of (B, H, W, C) by -2 to 2 positions along H or W; zeros come in."""
    reach = max(SHIFTS)
    padded = F.pad(x, (0, 0, 0, 0, reach, reach) if axis == 1 else (0, 0, reach, reach))
    groups = padded.chunk(len(SHIFTS), dim=-1)
    moved = [group.narrow(axis, reach - by, x.shape[axis]) for group, by in zip(groups, SHIFTS, strict=True)]
    return torch.cat(moved, dim=-1)


def conv_norm(in_dim: int, out_dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(in_dim, out_dim, 3, padding=1), nn.BatchNorm2d(out_dim))
