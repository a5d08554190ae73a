"""Which values or colours a mask has, told from what JPEG and smoothing have made of them."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from rwkvctl.base.errors import BadFile
from rwkvctl.data.convert.sources import RawFile
from rwkvctl.data.images import files as image_files
from rwkvctl.data.images import masks

MOST_CLASSES = 60
"""More values or colours are none of labels."""
MOST_LEVELS = 40
"""Of `levels`, in a mask."""
_MOST_EXACT = 40
"""Values in one mask; more come from JPEG or smoothing."""
_LEAST_SHARE = 2e-4
"""Of the even areas of a mask; what has less is an edge that was smoothed."""
_LOSSY_RADIUS, _RADIUS = 48, 8
_EVEN = {True: 24, False: 2}
"""How far the values of even areas may lie apart, in a JPEG and in other files."""

Key = tuple[int, ...]
"""A value, or red, green, blue."""


@dataclass
class Content:
    """One mask: its pixels as values (H, W) or colours (H, W, 3), how many pixels of its even areas each has."""

    file: RawFile
    data: bytes
    pixels: NDArray[Any]
    counts: Counter[Key]
    lossy: bool
    palette: bool

    @property
    def is_colour(self) -> bool:
        return self.pixels.ndim == 3


def content_of(file: RawFile) -> Content:
    """BadFile or ValueError for what is no mask."""
    data = file.read()
    indices = masks.read_indices(data)
    lossy = image_files.sniff(data) == "jpg"
    try:
        raw = masks.read_mask(data)
        pixels: NDArray[Any] = raw.values
        if raw.indices is not None and len(np.unique(raw.indices)) > 2:  # greys of a palette by their order
            pixels = raw.indices
    except ValueError:
        shown = masks.read_colours(data)
        if shown is None:
            raise
        pixels = shown[0] if indices is None else indices
    counts = _counts(pixels, lossy)
    return Content(file, data, pixels, counts, lossy, indices is not None)


def _counts(pixels: NDArray[Any], lossy: bool) -> Counter[Key]:
    """Pixels by value or colour: of all pixels, or, where there are too many for labels, of even areas."""
    found = _counted(pixels.reshape(-1, *pixels.shape[2:]))
    if len(found) <= _MOST_EXACT or pixels.dtype != np.uint8:
        return found
    square = np.ones((3, 3), np.uint8)
    spread = cv2.dilate(pixels, square).astype(np.int16) - cv2.erode(pixels, square)
    even = np.all(np.atleast_3d(spread) <= _EVEN[lossy], axis=-1)
    return _peaks(_counted(pixels[even]), _LOSSY_RADIUS if lossy else _RADIUS)


@functools.lru_cache(maxsize=4096)
def holds_classes(file: RawFile) -> bool:
    """Whether a mask has more than two values or colours, so that it is none of one class."""
    try:
        return len(content_of(file).counts) > 2
    except (BadFile, ValueError):
        return False


def area(file: RawFile) -> NDArray[np.bool_] | None:
    """Where a mask of two classes is drawn, (H, W); None for what cannot be read."""
    try:
        return np.asarray(masks.read_mask(file.read()).values > 0)
    except (BadFile, ValueError):
        return None


@functools.lru_cache(maxsize=4096)
def levels(file: RawFile) -> int:
    """How many values, or steps of 8 of them, make up 95 % of a picture: few in a mask, many in a photograph.

    0 for what cannot be read.
    """
    try:
        shown = masks.read_colours(file.read())
    except (BadFile, ValueError):
        return 0
    if shown is None:
        return 0
    step = max(1, max(shown[0].shape) // 512)
    counts = np.sort(list(_counted(shown[0][::step, ::step].reshape(-1, 3) >> 3).values()))[::-1]
    return int(np.searchsorted(np.cumsum(counts), 0.95 * counts.sum())) + 1


def _counted(values: NDArray[Any]) -> Counter[Key]:
    if values.ndim == 2:
        packed = values[:, 0].astype(np.int32) << 16 | values[:, 1].astype(np.int32) << 8 | values[:, 2]
        found, counts = np.unique(packed, return_counts=True)
        return Counter(
            {(int(v) >> 16, int(v) >> 8 & 255, int(v) & 255): int(n) for v, n in zip(found, counts, strict=True)}
        )
    counts = np.bincount(values.ravel())  # of 8 or 16 bits, which a sort takes ten times as long for
    return Counter({(int(value),): int(counts[value]) for value in np.flatnonzero(counts)})


def _peaks(counts: Counter[Key], radius: float) -> Counter[Key]:
    """The most frequent values, those within `radius` of one being it."""
    total, made = sum(counts.values()), Counter[Key]()
    for key, n in counts.most_common():
        near = next((own for own in made if np.linalg.norm(np.subtract(own, key)) <= radius), None)
        if near is not None:
            made[near] += n
        elif len(made) <= MOST_CLASSES:
            made[key] = n
    return Counter({key: n for key, n in made.items() if n >= _LEAST_SHARE * total})


def keys_of(contents: Sequence[Content]) -> list[Key]:
    """All values or colours that masks have, in order."""
    total = Counter[Key]()
    for one in contents:
        total.update(one.counts)
    blurred = any(one.lossy for one in contents)
    keys = list(_peaks(total, _LOSSY_RADIUS)) if blurred else list(total)
    return sorted(keys)


def as_colour(one: Content) -> Content:
    if one.is_colour:
        return one
    shown = masks.read_colours(one.data)
    pixels = one.pixels if shown is None else shown[0]
    counts = _counts(pixels, one.lossy)
    return Content(one.file, one.data, pixels, counts, one.lossy, one.palette)
