"""Volumes and their masks at another spacing: what a network over three axes is trained on, and its way back.

Both axes of a slice are resized at once, and then the axis across the slices. Centres of the outermost voxels keep
their distance from the border in voxels' sizes (`align_corners=False`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # shapes are asked for without torch
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
        volume = _interpolated(slices, shape[1:], within, smooth=smooth).movedim(1, 0)
    if volume.shape[1] != shape[0]:
        columns = volume.flatten(2)[None]  # (1, C, D, H * W)
        size = (shape[0], columns.shape[-1])
        volume = _interpolated(columns, size, "bilinear", smooth=smooth)[0].unflatten(-1, shape[1:])
    return volume


def _interpolated(images: Tensor, size: tuple[int, int], mode: str, *, smooth: bool) -> Tensor:
    """(N, C, *size) of (N, C, H, W). A single column is made as a row: torch 2.14 gives a wrong one with antialias."""
    import torch.nn.functional as F

    if size[1] == 1:
        lying = images.transpose(2, 3).contiguous()
        return F.interpolate(lying, size=(1, size[0]), mode=mode, antialias=smooth).transpose(2, 3)
    return F.interpolate(images, size=size, mode=mode, antialias=smooth)


def resize_mask(mask: NDArray[np.uint8], shape: Shape) -> NDArray[np.uint8]:
    """(D, H, W) -> uint8 `shape`: the class that is nearest by linear shares; of equal ones the higher, as nnU-Net."""
    import torch

    if mask.shape == shape:
        return mask
    best, share = np.zeros(shape, np.uint8), torch.zeros(shape)
    for value in np.unique(mask):
        own = resize_maps(torch.from_numpy(mask == value).float()[None], shape)[0]
        best[(own >= share).numpy()] = value
        share = torch.maximum(share, own)
    return best
