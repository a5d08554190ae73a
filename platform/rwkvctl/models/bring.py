"""A volume at the spacing that a network sees, some slices and then some rows at a time. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from rwkvctl.data.feed.resample import Shape, shape_at
from rwkvctl.models.bundle import VolumeInput
from rwkvctl.models.segmenting import Volume, check_values

Spacing = Sequence[float]
"""mm along z, y, x."""
Floats = NDArray[np.float32]
Resize = Callable[[Floats, Shape], Floats]
"""(C, D, H, W) -> (C, *shape), as `resample.resize_image`."""

AT_ONCE = 1 << 24
"""Voxels that are brought to another size at once."""


def shape_for(own: VolumeInput, native: Sequence[int], spacing: Spacing | None) -> Shape:
    """(D, H, W) of a volume at a network's spacing."""
    if own.spacing is None:
        return native[0], native[1], native[2]
    assert spacing is not None, "checked before"
    return shape_at(native, spacing, own.spacing)


def brought(
    networks: Sequence[VolumeInput], volume: Volume, spacing: Spacing | None, resize: Resize
) -> list[NDArray[np.float32]]:
    """A volume (D, H, W[, C]) as (C, D, H, W) at the spacing of each network, once where these are equal.

    UserError for values that are not finite.
    """
    shapes = [shape_for(own, volume.shape[:3], spacing) for own in networks]
    found = {shape: at_shape(volume, shape, resize) for shape in dict.fromkeys(shapes)}
    return [found[shape] for shape in shapes]


def at_shape(volume: Volume, shape: Shape, resize: Resize) -> Floats:
    """(C, *shape) of a volume (D, H, W[, C]): within its slices, then across them."""
    depth, height, width = volume.shape[:3]
    channels = volume.shape[3] if volume.ndim == 4 else 1
    flat = np.empty((channels, depth, *shape[1:]), np.float32)
    at_once = max(1, AT_ONCE // (channels * height * width))
    for start in range(0, depth, at_once):
        part = slice(start, start + at_once)
        slices = volume[part]
        check_values(slices)
        some = np.moveaxis(slices, -1, 0) if slices.ndim == 4 else slices[None]
        flat[:, part] = resize(np.ascontiguousarray(some), (some.shape[1], *shape[1:]))
    if depth == shape[0]:
        return flat
    found = np.empty((channels, *shape), np.float32)
    at_once = max(1, AT_ONCE // (channels * max(depth, shape[0]) * shape[2]))
    for start in range(0, shape[1], at_once):
        some = np.ascontiguousarray(flat[:, :, start : start + at_once])
        found[:, :, start : start + at_once] = resize(some, (shape[0], *some.shape[2:]))
    return found
