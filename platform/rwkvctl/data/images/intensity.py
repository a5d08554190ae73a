"""From a scanner's values to [0, 1]: one rule a data set, kept in its manifest and used again when masks are predicted.

A rule is `{"clip": [low, high], "scale": "(x - low) / (high - low)"}`. `low` and `high` are numbers, a window, or
statistics of the volume: "min", or "p99" for the smallest value that 99 % of its voxels do not exceed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Bound = float | str


def rule(low: Bound, high: Bound) -> dict[str, Any]:
    """The rule as it is written into a manifest."""
    return {"clip": [low, high], "scale": "(x - low) / (high - low)"}


def window(voxels: NDArray[Any], low: Bound, high: Bound) -> tuple[float, float]:
    """The two numbers that a volume is clipped to."""
    return _bound(voxels, low), _bound(voxels, high)


def scaled(voxels: NDArray[Any], low: float, high: float) -> NDArray[np.float32]:
    """Clipped to [low, high] and brought to [0, 1]; ValueError for voxels that are not finite numbers, or all alike."""
    values = voxels.astype(np.float32)
    if not np.isfinite(values).all():
        raise ValueError("has voxels that are not finite numbers")
    bottom, top = np.float32(low), np.float32(high)
    if bottom >= top:
        raise ValueError(f"has no contrast (all voxels {low:g})")
    return (np.clip(values, bottom, top) - bottom) / (top - bottom)


class ScaledSlices:
    """The slices of a volume (D, H, W) in [0, 1], each made when it is asked for: float32 for all of them would be
    two to four times what the file holds.

    rescaled: from numbers as they are stored to the scanner's.
    """

    dtype = np.dtype(np.float32)
    ndim = 3

    def __init__(
        self,
        stored: NDArray[Any],
        low: float,
        high: float,
        rescaled: Callable[[NDArray[Any]], NDArray[Any]] = np.asarray,
    ):
        self.stored, self.low, self.high, self.rescaled = stored, low, high, rescaled
        self.shape = stored.shape

    @property
    def nbytes(self) -> int:
        """Of what is held."""
        return self.stored.nbytes

    def __len__(self) -> int:
        return len(self.stored)

    def __getitem__(self, which: int | slice) -> NDArray[np.float32]:
        return scaled(self.rescaled(self.stored[which]), self.low, self.high)


def _bound(voxels: NDArray[Any], bound: Bound) -> float:
    if bound == "min":
        return float(voxels.min())
    if isinstance(bound, str):
        return float(np.quantile(voxels, float(bound.removeprefix("p")) / 100, method="inverted_cdf"))
    return float(bound)
