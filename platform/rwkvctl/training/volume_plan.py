"""What a network over three axes is trained on, by the voxels of its data: spacing, patch, kernels and strides.

The rules are those of nnU-Net's planner (Isensee et al., Nature Methods 2021, supplementary note 2), but for the size
of a patch, which is a number of voxels here and not an estimate of a GPU's memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Triple = tuple[int, int, int]
Spacing = tuple[float, float, float]

THICK = 3.0
"""An axis is thick whose voxels are so many times as long as those of the others."""
THICK_PERCENTILE = 10
"""Of the spacings along a thick axis: most volumes get slices between theirs rather than lose some."""
LEAST_FEATURES = 4
"""Voxels along an axis of the deepest feature map, at least."""
BEGIN = 256**3
"""Voxels of the patch that is made smaller until it fits."""


@dataclass(frozen=True)
class CaseSize:
    """The voxels (D, H, W) of a volume, and their size in mm along z, y, x; None where the source does not tell."""

    shape: Triple
    spacing: Spacing | None


@dataclass(frozen=True)
class Levels:
    """How a network goes down: of each level, the first the finest, its convolutions' kernel and the stride by which it
    is reached. The first is reached by none, so its stride is (1, 1, 1)."""

    strides: tuple[Triple, ...]
    kernels: tuple[Triple, ...]

    @property
    def divisor(self) -> Triple:
        """What the sides of a patch are multiples of."""
        depth, height, width = (math.prod(each[axis] for each in self.strides) for axis in range(3))
        return depth, height, width


def spacing_for(sizes: Sequence[CaseSize]) -> Spacing | None:
    """The spacing that volumes are brought to: the median along each axis; along a thick one, of which the volumes have
    few slices too, the tenth percentile. None where a volume has no spacing."""
    spacings = [size.spacing for size in sizes if size.spacing is not None]
    if len(spacings) < len(sizes) or not sizes:
        return None
    found, shape = np.median(spacings, axis=0), np.median([size.shape for size in sizes], axis=0)
    thick = int(np.argmax(found))
    others = [axis for axis in range(3) if axis != thick]
    if found[thick] > THICK * found[others].max() and shape[thick] * THICK < shape[others].min():
        found[thick] = max(float(np.percentile(np.array(spacings)[:, thick], THICK_PERCENTILE)), found[others].max())
    z, y, x = (round(float(each), 6) for each in found)
    return z, y, x


def median_shape(sizes: Sequence[CaseSize], spacing: Spacing | None) -> Triple:
    """The voxels that the volumes have at the spacing, along each axis the median."""
    shapes = [
        size.shape
        if spacing is None or size.spacing is None
        else [max(1, round(n * a / b)) for n, a, b in zip(size.shape, size.spacing, spacing, strict=True)]
        for size in sizes
    ]
    depth, height, width = (max(1, round(float(n))) for n in np.median(shapes, axis=0))
    return depth, height, width


def levels_for(patch: Sequence[int], spacing: Sequence[float], most: int | None = None) -> Levels:
    """Kernels and strides of a network that sees patches of so many voxels of a size.

    An axis is halved as long as its voxels are less than twice as long as the shortest, and eight of them are left;
    its kernels are 1 until it is that short, then 3. most: levels, the finest counted.
    """
    size, step = list(patch), list(spacing)
    kernel, strides, kernels = [1, 1, 1], [(1, 1, 1)], []
    while most is None or len(strides) < most:
        large = [axis for axis in range(3) if size[axis] >= 2 * LEAST_FEATURES]
        shortest = min((step[axis] for axis in large), default=math.inf)
        halved = [axis for axis in large if step[axis] < 2 * shortest]
        if not halved or (len(halved) == 1 and size[halved[0]] < 3 * LEAST_FEATURES):
            break
        kernel = [3 if kernel[axis] == 3 or step[axis] < 2 * min(step) else 1 for axis in range(3)]
        kernels.append((kernel[0], kernel[1], kernel[2]))
        for axis in halved:
            size[axis], step[axis] = -(-size[axis] // 2), step[axis] * 2
        depth, height, width = (2 if axis in halved else 1 for axis in range(3))
        strides.append((depth, height, width))
    return Levels(tuple(strides), (*kernels, (3, 3, 3)))


def patch_for(
    median: Triple, spacing: Sequence[float], voxels: int, most: int | None = None, least: Triple = (1, 1, 1)
) -> Triple:
    """The patch (D, H, W) of at most so many voxels: as long in mm along all axes, but no longer than the median
    volume; what is too much is taken from the axis that has most of the volume's.

    most: levels of the network. least: what its sides are multiples of in any case.
    """
    inverse = [1 / step for step in spacing]
    cube = (BEGIN / math.prod(inverse)) ** (1 / 3)
    sides = [max(1, min(round(each * cube), n)) for each, n in zip(inverse, median, strict=True)]
    divisor = divisor_for(sides, spacing, most, least)
    while math.prod(whole := rounded_up(sides, divisor)) > voxels:
        shares = [side / n if side > d else 0.0 for side, n, d in zip(whole, median, divisor, strict=True)]
        if not any(shares):
            break
        axis = int(np.argmax(shares))
        sides = list(whole)
        sides[axis] -= divisor[axis]
        divisor = divisor_for(sides, spacing, most, least)
    return whole


def divisor_for(sides: Sequence[int], spacing: Sequence[float], most: int | None, least: Triple) -> Triple:
    """What the sides of a patch are multiples of, which both are powers of 2."""
    depth, height, width = map(max, levels_for(sides, spacing, most).divisor, least)
    return depth, height, width


def rounded_up(sides: Sequence[int], divisor: Sequence[int]) -> Triple:
    """The next multiples."""
    depth, height, width = (-(-side // d) * d for side, d in zip(sides, divisor, strict=True))
    return depth, height, width
