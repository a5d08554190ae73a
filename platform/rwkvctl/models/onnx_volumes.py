"""Whole volumes by exported networks over three axes: what `volumes` does with torch, in NumPy."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import cv2
import numpy as np
from numpy.typing import NDArray

from rwkvctl.data.feed.resample import Shape
from rwkvctl.models import windows
from rwkvctl.models.bundle import VolumeInput
from rwkvctl.models.windows import Counted

Floats = NDArray[np.float32]


def logits_of(
    network: Callable[[Floats], Floats],
    own: VolumeInput,
    volume: Floats,
    native: Sequence[int],
    parts: Sequence[slice],
    counted: Counted,
) -> Iterator[Floats]:
    """(B, classes, H, W), at the size `native` (D, H, W), of its slices `parts`; see `volumes.Seen.logits`."""

    def run(some: Floats) -> Floats:
        found = network(some)
        counted.more(len(some))
        return found

    slices = windows.slide(
        volume,
        own.patch,
        own.overlap,
        run,
        at_once=lambda: 1,
        zeros=lambda shape: np.zeros(shape, np.float32),
        like=lambda array: array,
    )
    every = windows.across(slices, volume.shape[1], native[0])
    for part in parts:
        maps = list(islice(every, len(range(native[0])[part])))
        yield enlarged(np.stack(maps).astype(np.float32, copy=False), (native[1], native[2]))


def enlarged(maps: Floats, native: tuple[int, ...]) -> Floats:
    """(N, classes, h, w) at (H, W), bilinear."""
    if maps.shape[2:] == native:
        return maps
    height, width = native
    resize = [[cv2.resize(each, (width, height), interpolation=cv2.INTER_LINEAR) for each in one] for one in maps]
    return np.asarray(resize, np.float32)


# As `resample.resize_image` -------------------------------------------------------------------------------------------


def resized(volume: Floats, shape: Shape) -> Floats:
    """(C, D, H, W) -> (C, *shape): cubic within the slices, linear across them; an axis that shrinks is smoothed."""
    if volume.shape[2:] != shape[1:]:
        rows, columns = (share_of(n, new, cubic, 2.0) for n, new in zip(volume.shape[2:], shape[1:], strict=True))
        volume = np.asarray(rows @ volume @ columns.T, np.float32)
    if volume.shape[1] != shape[0]:
        slices = share_of(volume.shape[1], shape[0], linear, 1.0)
        volume = (slices @ volume.reshape(*volume.shape[:2], -1)).reshape(volume.shape[0], *shape)
    return np.ascontiguousarray(volume)


@functools.lru_cache(maxsize=32)
def share_of(
    size: int, wanted: int, weight: Callable[[NDArray[np.float64]], NDArray[np.float64]], reach: float
) -> Floats:
    """(wanted, size): how much each voxel of an axis has in each new one. Where the axis shrinks, the kernel is as much
    wider, as Pillow and torch (antialias) have it."""
    scale = size / wanted
    wide = max(scale, 1.0)
    found = np.zeros((wanted, size), np.float32)
    for place in range(wanted):
        centre = scale * (place + 0.5)
        first, last = max(int(centre - reach * wide + 0.5), 0), min(int(centre + reach * wide + 0.5), size)
        shares = weight(np.abs((np.arange(first, last) - centre + 0.5) / wide))
        found[place, first:last] = shares / shares.sum()
    return found


def cubic(away: NDArray[np.float64]) -> NDArray[np.float64]:
    """Keys' kernel with a = -0.5, of distances from 0 on."""
    near = (1.5 * away - 2.5) * away**2 + 1
    far = ((-0.5 * away + 2.5) * away - 4) * away + 2
    return np.where(away < 1, near, np.where(away < 2, far, 0.0))


def linear(away: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.maximum(0.0, 1 - away)
