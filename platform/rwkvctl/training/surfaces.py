"""The surfaces of two masks, and how far each is from the other: in voxels and in mm from one distance transform for
each direction. HD95, the average distance and the share within a tolerance are read from these distances.

Wanted are the distances from every surface voxel of one mask to the nearest of the other. OpenCV's exact transform
gives, in every slice of the other mask, the squared distance n within the slice, a whole number. Over the slices dz
away, the least n + dz^2 is the squared distance in voxels, and with square pixels of side s the least s^2 n + (sz
dz)^2 is that in mm. A slice further away than the best so far need not be looked at, so few are. Where pixels are not
square, s is bounded by their two sides; where the bounds differ, a tree is searched.

In voxels the values are medpy's bit for bit: squared distances are whole numbers. In mm they are within 1e-12 of it:
medpy adds (s dy)^2 and (s dx)^2, rounded, where this multiplies their sum, which may differ in the 16th digit; and of
voxels that are equally far away either may be the nearest, by the same digit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Floats = NDArray[np.float64]
Spacing = tuple[float, float, float]

EXACT_PLANE = 2**21
"""Largest height^2 + width^2 of a slice for which OpenCV's float32 distances are the roots of whole numbers: squared,
they are off by 3 / 2^24 of themselves at most, so that they round to the whole number; and the places at which its
parabolas cross, of which no two are nearer than 1 / side, are off by less. Intel's library, which it may call, rounds
roots worse."""

CHUNK = 1 << 15
"""Surface voxels worked on at once: what is kept beside the slices stays small."""

ROUNDING = 1e-9
"""Share of a tolerance by which a distance may be above it, so that the 16th digit does not decide."""

LOOKS = 4
"""Looks into other slices, for each voxel of the box, after which scipy's transform of the whole box is the faster way:
a mask is noise, and the other one far from most of it."""


class Distances(NamedTuple):
    """From every surface voxel of the first mask to the nearest one of the second, and from the second to the first."""

    there: Floats
    back: Floats

    def hd95(self) -> tuple[float, float]:
        """The 95th percentile of both directions pooled, as in medpy; and the larger of the two directions' 95th
        percentiles, as in MONAI and MetricsReloaded."""
        pooled = np.percentile(np.hstack(self), 95)
        return float(pooled), float(max(np.percentile(self.there, 95), np.percentile(self.back, 95)))

    def average(self) -> float:
        """ASSD: the mean of both directions pooled, as in medpy, MONAI and MetricsReloaded."""
        return float((self.there.sum() + self.back.sum()) / (len(self.there) + len(self.back)))

    def within(self, tolerance: float) -> float:
        """NSD: the share of all surface voxels that are no further away than the tolerance."""
        limit = tolerance * (1 + ROUNDING)
        near = np.count_nonzero(self.there <= limit) + np.count_nonzero(self.back <= limit)
        return float(near / (len(self.there) + len(self.back)))


def surface_distances(
    pred: Mask, truth: Mask, spacing_mm: Sequence[float] | None = None
) -> tuple[Distances, Distances | None]:
    """Of two masks, (H, W) or (D, H, W), neither empty: in voxels, and in mm where the spacing is given."""
    box = bounding_box(pred | truth)
    surfaces = tuple(surface_of(mask[box]).reshape((-1, *pred[box].shape[-2:])) for mask in (pred, truth))
    spacing = None if spacing_mm is None else _spacing3(spacing_mm)
    weights = [(1.0, 1.0)]
    if spacing is not None:
        weights += [(side**2, spacing[0] ** 2) for side in sorted(set(spacing[1:]))]
    there, back = (_nearest(start, goal, weights) for start, goal in (surfaces, surfaces[::-1]))
    if there is None or back is None:
        voxels = _searched(surfaces, (1.0, 1.0, 1.0))
        return voxels, None if spacing is None else _searched(surfaces, spacing)
    voxels = Distances(there[0], back[0])
    if spacing is None:
        return voxels, None
    mm = Distances(there[1], back[1])
    if len(weights) == 2:
        return voxels, mm
    # A distance along the slices alone is the same for both bounds.
    between = [high > low for low, high in zip(mm, (there[2], back[2]), strict=True)]
    return voxels, _searched(surfaces, spacing, known=mm, open_=between)


def _spacing3(spacing_mm: Sequence[float]) -> Spacing:
    z, y, x = (1.0,) * (3 - len(spacing_mm)) + tuple(map(float, spacing_mm))
    return z, y, x


# Surfaces -----------------------------------------------------------------------------------------------------------


def bounding_box(mask: Mask) -> tuple[slice, ...]:
    """The smallest box, as slices, around the true voxels of a mask that has some."""
    hits = np.flatnonzero(mask.reshape(len(mask), -1).any(axis=1))
    own = slice(int(hits[0]), int(hits[-1]) + 1)
    return (own,) if mask.ndim == 1 else (own, *bounding_box(np.logical_or.reduce(mask[own])))


def surface_of(mask: Mask) -> Mask:
    """The voxels of a mask of which a face neighbour is outside, as in medpy; outside the array is outside.

    So the mask needs no margin: what is cut off around it is not of it.
    """
    inside = mask.copy()
    for axis in range(mask.ndim):
        own, of_mask = np.moveaxis(inside, axis, 0), np.moveaxis(mask, axis, 0)
        own[1:] &= of_mask[:-1]
        own[:-1] &= of_mask[1:]
        own[[0, -1]] = False
    return mask ^ inside


# Distances ----------------------------------------------------------------------------------------------------------


def _nearest(start: Mask, goal: Mask, weights: Sequence[tuple[float, float]]) -> list[Floats] | None:
    """From every voxel of `start` to `goal`, both (D, H, W): the root of the least a n + b dz^2, for each (a, b).

    None if the slices are too large, or too many of them would have to be looked at.
    """
    if sum(side**2 for side in goal.shape[1:]) > EXACT_PLANE:
        return None
    slices = _squares_within_slices(goal)
    voxels = np.flatnonzero(start)
    found = [np.empty(len(voxels)) for _ in weights]
    looks = LOOKS * start.size
    for begin in range(0, len(voxels), CHUNK):
        part = slice(begin, begin + CHUNK)
        bests, looked = _over_slices(slices, voxels[part], weights)
        looks -= looked
        if looks < 0:
            return None
        for values, best in zip(found, bests, strict=True):
            np.sqrt(best, out=values[part])
    return found


def _squares_within_slices(goal: Mask) -> NDArray[np.float32]:
    """(D, H, W): the squared distance to the nearest voxel of `goal` in the same slice, infinite if there is none."""
    outside = np.logical_not(goal).view(np.uint8)
    squares = np.empty(goal.shape, np.float32)
    before = cv2.ipp.useIPP()
    cv2.ipp.setUseIPP(False)
    try:
        for plane, result, some in zip(outside, squares, np.logical_or.reduce(goal, (1, 2)), strict=True):
            if some:
                cv2.distanceTransform(plane, cv2.DIST_L2, cv2.DIST_MASK_PRECISE, dst=result)
                np.rint(np.multiply(result, result, out=result), out=result)
            else:
                result.fill(np.inf)
    finally:
        cv2.ipp.setUseIPP(before)
    return squares


def _over_slices(
    slices: NDArray[np.float32], voxels: NDArray[np.intp], weights: Sequence[tuple[float, float]]
) -> tuple[list[Floats], int]:
    """For each (a, b) the least a n + b dz^2 of voxels, given by their ascending places in (D, H, W); and how many
    looks into other slices that took."""
    squares, plane = slices.reshape(-1), slices[0].size
    own = squares[voxels].astype(np.float64)
    bests = [a * own for a, _ in weights]
    going = np.arange(len(voxels))
    looks = 0
    for dz in range(1, len(slices)):
        limits = [b * dz * dz for _, b in weights]
        going = going[np.any([best[going] > limit for best, limit in zip(bests, limits, strict=True)], axis=0)]
        if not len(going):
            break
        places = voxels[going]
        end, begin = np.searchsorted(places, (squares.size - dz * plane, dz * plane))
        for side, step in ((slice(end), dz * plane), (slice(begin, None), -dz * plane)):
            who, n = going[side], squares[places[side] + step].astype(np.float64)
            looks += len(who)
            for (a, _), limit, best in zip(weights, limits, bests, strict=True):
                best[who] = np.minimum(best[who], a * n + limit)
    return bests, looks


# Pixels that are not square, slices that are too large, noise -------------------------------------------------------


def _searched(
    surfaces: tuple[Mask, ...],
    spacing: Spacing,
    known: Sequence[Floats] | None = None,
    open_: Sequence[Mask] | None = None,
) -> Distances:
    """Distances in either direction, of all surface voxels or of the open ones: from a tree of the other surface's
    voxels, or, where that takes longer, from scipy's transform of the whole box."""
    from scipy.ndimage import distance_transform_edt
    from scipy.spatial import cKDTree

    found = []
    for way, (start, goal) in enumerate((surfaces, surfaces[::-1])):
        count = np.count_nonzero(start)
        some = np.ones(count, bool) if open_ is None else open_[way]
        if np.count_nonzero(goal) + np.count_nonzero(some) > goal.size // 10:
            flat = 1 if len(goal) == 1 else 0  # a picture is quicker as such
            distances = distance_transform_edt(~goal.squeeze(0) if flat else ~goal, sampling=spacing[flat:])
            found.append(distances.reshape(goal.shape)[start])
            continue
        goals, starts = np.argwhere(goal), np.argwhere(start)[some]
        steps = (goals[cKDTree(goals * spacing).query(starts * spacing)[1]] - starts) * spacing  # first whole, as scipy
        values = np.empty(count) if known is None else known[way].copy()
        values[some] = np.sqrt((steps * steps).sum(axis=1))
        found.append(values)
    return Distances(*found)
