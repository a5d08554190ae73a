"""A volume seen through windows that overlap: where they lie, how much each says of its voxels, and what comes of them,
slice by slice from the first to the last. Needs no torch.

Windows and weights are those of MONAI's `SlidingWindowInferer` (mode "gaussian"), which holds the maps of the whole
volume at once; here those of the slices that some window still lacks are held, as many as a window is deep.
Maps are torch tensors or NumPy arrays, whichever the network gives.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rwkvctl.models.segmenting import not_seen

Floats = NDArray[np.float32]
Maps = Any
"""(classes, H, W) of a slice, or of windows (B, classes, D, H, W): a tensor or an array."""
Shape = tuple[int, int, int]

SIGMA = 0.125
"""Of a window's Gaussian, as a share of its side."""
LEAST_WEIGHT = 1e-3


class Span(NamedTuple):
    """A window along one axis: its first voxel, which is negative where the volume is smaller, and the part that lies
    in the volume, counted in the volume and in the window."""

    start: int
    inside: slice
    own: slice


def spans(size: int, side: int, overlap: float) -> list[Span]:
    """The windows along one axis; the last ends where the volume does. One that is larger than the volume has it in its
    middle."""
    if size <= side:
        low = (side - size) // 2
        return [Span(-low, slice(0, size), slice(low, low + size))]
    step = max(1, int(side * (1 - overlap)))
    last = size - side
    starts = [*range(0, last, step), last]
    return [Span(start, slice(start, start + side), slice(0, side)) for start in starts]


def weights_of(patch: Sequence[int]) -> Floats:
    """(D, H, W): how much a window says of each of its voxels, most in its middle."""
    found = np.ones((), np.float32)
    for side in patch:
        away = np.arange(side, dtype=np.float32) - np.float32((side - 1) / 2)
        found = found[..., None] * np.exp(away**2 / np.float32(-2 * (SIGMA * side) ** 2))
    return np.maximum(found, max(float(found.min()), LEAST_WEIGHT)).astype(np.float32)


def count(shape: Sequence[int], patch: Sequence[int], overlap: float) -> int:
    """How many windows a volume has."""
    return math.prod(len(spans(size, side, overlap)) for size, side in zip(shape, patch, strict=True))


@dataclass
class Counted:
    """Tells of windows as if they were slices: as many as the volume has when all windows of all networks are seen."""

    windows: int
    slices: int
    seen: Callable[[int], None] = not_seen
    done: int = 0

    def more(self, windows: int) -> None:
        before = self.done * self.slices // self.windows
        self.done += windows
        if new := self.done * self.slices // self.windows - before:
            self.seen(new)


def slide(
    volume: Floats,
    patch: Shape,
    overlap: float,
    network: Callable[[Floats], Maps],
    *,
    at_once: Callable[[], int],
    zeros: Callable[[tuple[int, ...]], Maps],
    like: Callable[[Floats], Maps],
) -> Iterator[Maps]:
    """The maps (classes, H, W) of each slice of a volume (C, D, H, W), in their order.

    What windows see beyond the volume is its border continued.

    Args:
        network: from windows (B, C, *patch) to their maps (B, classes, *patch).
        at_once: how many windows it is given, asked anew each time.
        zeros, like: make maps of a shape, and of an array, where the network's first maps are.
    """
    along = [spans(size, side, overlap) for size, side in zip(volume.shape[1:], patch, strict=True)]
    weights: Maps | None = None
    band: deque[tuple[Maps, Maps]] = deque()  # sums and their weights, of slices from `first` on
    first = 0
    ends = [window.inside.start for window in along[0][1:]] + [volume.shape[1]]
    for z, done in zip(along[0], ends, strict=True):
        waiting = list(itertools.product(along[1], along[2]))
        while waiting:
            now, waiting = waiting[: at_once()], waiting[at_once() :]
            found = network(np.stack([cut(volume, (z, y, x), patch) for y, x in now]))
            weights = like(weights_of(patch)) if weights is None else weights
            while first + len(band) < z.inside.stop:
                band.append((zeros((found.shape[1], *volume.shape[2:])), zeros(tuple(volume.shape[2:]))))
            for (y, x), maps in zip(now, found, strict=True):
                for own in range(z.own.start, z.own.stop):
                    total, weight = band[z.start + own - first]
                    share = weights[own, y.own, x.own]
                    total[:, y.inside, x.inside] += maps[:, own, y.own, x.own] * share
                    weight[y.inside, x.inside] += share
        for _ in range(done - first):
            total, weight = band.popleft()
            total /= weight
            yield total
        first = done


def cut(volume: Floats, window: tuple[Span, Span, Span], patch: Shape) -> Floats:
    """(C, *patch) of a volume (C, D, H, W)."""
    inside = volume[:, window[0].inside, window[1].inside, window[2].inside]
    around = [(span.own.start, side - span.own.stop) for span, side in zip(window, patch, strict=True)]
    return np.pad(inside, [(0, 0), *around], "edge") if any(map(any, around)) else inside


def across(slices: Iterator[Maps], depth: int, wanted: int) -> Iterator[Maps]:
    """From the maps of `depth` slices to those of `wanted`, linear between them: their centres keep their distance from
    the ends, as `data.feed.resample` has it."""
    if depth == wanted:
        yield from slices
        return
    held: deque[Maps] = deque(maxlen=2)
    last = -1  # of the slices that were taken
    for place in range(wanted):
        at = max(0.0, (place + 0.5) * depth / wanted - 0.5)
        low = min(int(at), depth - 1)
        high, share = min(low + 1, depth - 1), at - low
        while last < high:
            held.append(next(slices))
            last += 1
        yield held[-1] if low == high else held[0] * (1 - share) + held[-1] * share
