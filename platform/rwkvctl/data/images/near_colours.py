"""Masks whose pixels are not quite the values of their classes: JPEG, smoothed edges, masks that were resized.

A pixel goes to the class whose value it nearly has, or else to the nearest of the classes around it; where
neither tells, it stays unknown. So the grey between black and white at an edge never becomes a third class in between.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

UNKNOWN = -1
ROUNDING = 4
"""So far from its class a value may lie by rounding: it is not counted as moved, as the noise of a JPEG is not."""
LEAST_GAP = 16
"""Classes whose values lie nearer to one another are taken exactly or not at all."""
_NOISE = {True: 48.0, False: 16.0}
_EDGE = {True: 48.0, False: 12.0}
_FEWEST_BLENDS = 3
"""Smoothing makes several values between two classes; one or two are rather labels that are not known."""
_AROUND = (5, 9, 17)
"""Pixels across which a pixel's classes are looked for; the wider ones for masks that were enlarged."""
_CORE = np.ones((3, 3), np.uint8)

Ids = NDArray[np.int16]
Bools = NDArray[np.bool_]


class Settled(NamedTuple):
    """Class ids (H, W), UNKNOWN where none fits, and the share of pixels that were moved to a class."""

    ids: Ids
    moved: float


def settle(
    pixels: NDArray[np.uint8], exact: Ids, points: Sequence[Sequence[int]], of: Sequence[int], lossy: bool
) -> Settled:
    """Class ids of `pixels` (H, W, C), given those that are exact, UNKNOWN elsewhere.

    points: the value of each class, (C,) each, of: its class id; lossy: whether the file is a JPEG.
    """
    values, classes = np.array(points, np.float32), np.array(of, np.int16)
    gap = _gap(values, classes)
    if not (exact == UNKNOWN).any() or gap < LEAST_GAP:
        return Settled(exact, 0.0)
    squares = np.stack([((pixels - value) ** 2).sum(-1) for value in values])
    nearest, distance = classes[squares.argmin(0)], np.sqrt(squares.min(0))
    if not lossy and _has_other_labels(pixels, distance):
        return Settled(exact, 0.0)
    noise = min(gap / 4, _NOISE[lossy])
    sure = np.where(distance <= noise, nearest, np.int16(UNKNOWN))
    sure[exact != UNKNOWN] = exact[exact != UNKNOWN]
    rims = _rims(sure, values, classes, noise)
    sure[rims] = UNKNOWN
    ids = sure
    for side in _AROUND[:1] if lossy else _AROUND:
        ids = _by_surroundings(squares, sure, ids, values, classes, noise, lossy, side)
    moved = ((ids != exact) & (ids != UNKNOWN) & (distance > (noise if lossy else ROUNDING))) | rims
    return Settled(ids, float(moved.mean()))


def _gap(values: NDArray[np.float32], classes: NDArray[np.int16]) -> float:
    """The distance of the two nearest classes."""
    apart = np.sqrt(((values[:, None] - values[None]) ** 2).sum(-1))
    return float(apart[classes[:, None] != classes[None]].min(initial=np.inf))


def _has_other_labels(pixels: NDArray[np.uint8], distance: NDArray[np.float32]) -> bool:
    """Whether values that are no class's fill areas, or are too few to come from smoothing."""
    off = distance > ROUNDING
    if not off.any():
        return False
    flat = np.all(np.atleast_3d(cv2.erode(pixels, _CORE) == cv2.dilate(pixels, _CORE)), axis=-1)
    return bool((flat & off).any()) or len(np.unique(pixels[off], axis=0)) < _FEWEST_BLENDS


def _rims(sure: Ids, values: NDArray[np.float32], classes: NDArray[np.int16], noise: float) -> Bools:
    """Where a class between two others has only the thin line that smoothing leaves between those two."""
    found = np.zeros(sure.shape, bool)
    present = {int(own) for own in np.unique(sure)} - {UNKNOWN}
    cores = {own: _mask(cv2.erode(_bytes(sure == own), _CORE)) for own in present}
    around = {own: _mask(cv2.dilate(_bytes(core), _square(_AROUND[0]))) for own, core in cores.items()}
    for number, middle in enumerate(classes):
        thin = (sure == middle) & ~around[int(middle)] if int(middle) in present else None
        if thin is None or not thin.any():
            continue
        for first in range(len(classes)):
            for second in range(first):
                ends = int(classes[first]), int(classes[second])
                if middle in ends or ends[0] == ends[1] or not present.issuperset(ends):
                    continue
                if _lies_between(values[number], values[first], values[second], noise):
                    found |= thin & around[ends[0]] & around[ends[1]]
    return found


def _lies_between(
    middle: NDArray[np.float32], first: NDArray[np.float32], second: NDArray[np.float32], noise: float
) -> bool:
    line = second - first
    place = float((middle - first) @ line / (line @ line))
    return 0 < place < 1 and float(np.linalg.norm(first + place * line - middle)) <= noise


def _by_surroundings(
    squares: NDArray[np.float32],
    sure: Ids,
    ids: Ids,
    values: NDArray[np.float32],
    classes: NDArray[np.int16],
    noise: float,
    lossy: bool,
    side: int,
) -> Ids:
    """`ids`, and every pixel left there of the nearest class among the sure ones in the square of `side` around it.

    A blend of two classes is no farther from the nearer one than half of what lies between them.
    """
    left = ids == UNKNOWN
    if not left.any():
        return ids
    best, reach = np.full(int(left.sum()), np.inf, np.float32), np.zeros(int(left.sum()), np.float32)
    chosen = np.full(len(best), UNKNOWN, np.int16)
    near = [_mask(cv2.dilate(_bytes(sure == own), _square(side)))[left] for own in classes]
    for number, own in enumerate(classes):
        distance = np.sqrt(squares[number][left])
        nearer = near[number] & (distance < best)
        chosen[nearer], best[nearer] = own, distance[nearer]
        for other in range(number):
            both = near[number] & near[other]
            reach[both] = np.maximum(reach[both], np.linalg.norm(values[number] - values[other]) / 2)
    chosen[best > np.maximum(reach + _EDGE[lossy] * (reach > 0), noise * (1 + lossy / 3))] = UNKNOWN
    ids = ids.copy()
    ids[left] = chosen
    return ids


def _square(side: int) -> NDArray[np.uint8]:
    return np.ones((side, side), np.uint8)


def _bytes(where: Bools) -> NDArray[np.uint8]:
    return where.astype(np.uint8)


def _mask(values: NDArray[np.generic] | cv2.typing.MatLike) -> Bools:
    return np.asarray(values) > 0
