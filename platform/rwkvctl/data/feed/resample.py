"""Volumes and their masks at another spacing: what a network over three axes is trained on, and its way back.

Both axes of a slice are resized at once, and then the axis across the slices. Centres of the outermost voxels keep
their distance from the border in voxels' sizes (`align_corners=False`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

Shape = tuple[int, int, int]
Spacing = tuple[float, float, float]
"""mm along z, y, x."""


def shape_at(shape: Sequence[int], spacing: Sequence[float], wanted: Sequence[float]) -> Shape:
    """The voxels (D, H, W) that a volume has at another spacing; at least one along each axis."""
    depth, height, width = (
        max(1, round(n * have / want)) for n, have, want in zip(shape, spacing, wanted, strict=True)
    )
    return depth, height, width


def resize_image(volume: Tensor, shape: Shape) -> Tensor:
    """(C, D, H, W) -> (C, *shape): cubic within the slices, as nnU-Net, and linear across them; an axis that shrinks is
    smoothed first."""
    return _resize(volume, shape, "bicubic", smooth=True)


def resize_maps(volume: Tensor, shape: Shape) -> Tensor:
    """(C, D, H, W) of probabilities or logits -> (C, *shape): linear, so that they stay in their range."""
    return _resize(volume, shape, "bilinear", smooth=False)


def _resize(volume: Tensor, shape: Shape, within: str, *, smooth: bool) -> Tensor:
    if tuple(volume.shape[2:]) != shape[1:]:
        slices = volume.movedim(0, 1)  # (D, C, H, W)
        volume = F.interpolate(slices, size=shape[1:], mode=within, antialias=smooth).movedim(1, 0)
    if volume.shape[1] != shape[0]:
        columns = volume.flatten(2)[None]  # (1, C, D, H * W)
        size = (shape[0], columns.shape[-1])
        volume = F.interpolate(columns, size=size, mode="bilinear", antialias=smooth)[0].unflatten(-1, shape[1:])
    return volume


def resize_mask(mask: NDArray[np.uint8], shape: Shape) -> NDArray[np.uint8]:
    """(D, H, W) -> uint8 `shape`: the class that is nearest by linear shares; of equal ones the higher, as nnU-Net."""
    if mask.shape == shape:
        return mask
    best, share = np.zeros(shape, np.uint8), torch.zeros(shape)
    for value in np.unique(mask):
        own = resize_maps(torch.from_numpy(mask == value).float()[None], shape)[0]
        best[(own >= share).numpy()] = value
        share = torch.maximum(share, own)
    return best
