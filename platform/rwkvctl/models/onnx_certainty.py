"""`certainty.Certainty` in numpy, for masks that are made without torch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rwkvctl.models.sureness import Sureness


class Certainty:
    """Sums over the slices of a case: by class the size of the mask, the probability within it and everywhere."""

    def __init__(self, classes: int):
        self.sizes, self.own, self.everywhere = np.zeros((3, classes))
        self.entropy = 0.0

    def see(self, probabilities: NDArray[np.float32], mask: NDArray[np.uint8]) -> None:
        """probabilities: (N, classes, H, W); mask: (N, H, W)."""
        inside = mask > 0
        own, ids = probabilities.swapaxes(0, 1)[:, inside], mask[inside]  # (classes, pixels)
        self.everywhere += probabilities.sum(axis=(0, 2, 3), dtype=np.float64)
        self.sizes += np.bincount(ids, minlength=len(self.sizes))
        self.own += np.bincount(ids, weights=own[ids, np.arange(len(ids))], minlength=len(self.own))
        self.entropy -= float((own * np.log(np.maximum(own, np.finfo(np.float32).tiny))).sum(dtype=np.float64))

    def result(self) -> Sureness:
        predicted = [
            2 * own / (size + every) if size else None
            for size, own, every in zip(
                *(sums[1:].tolist() for sums in (self.sizes, self.own, self.everywhere)), strict=True
            )
        ]
        foreground = self.sizes.sum()
        return Sureness(predicted, float(self.entropy / foreground) if foreground else None)
