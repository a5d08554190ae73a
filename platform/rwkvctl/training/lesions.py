"""Lesions as connected components: how many there are, how many were found, and how many predicted ones are none.

Voxels that share a face, an edge or a corner are of one lesion. A true and a predicted lesion match if their IoU is at
least 0.1, and each matches one other at most, so that there are as many pairs as possible: the rule of the PI-CAI
challenge. So of a lesion that is predicted in two pieces one piece is false.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwkvctl.training.surfaces import bounding_box

MATCH_IOU = 0.1


@dataclass(frozen=True)
class Lesions:
    """Of one class of one case."""

    true: int
    predicted: int
    found: int
    """Pairs of a true and a predicted lesion."""

    @property
    def precision(self) -> float | None:
        """The share of predicted lesions that are one; None where none is predicted."""
        return self.found / self.predicted if self.predicted else None

    @property
    def recall(self) -> float | None:
        """The share of true lesions that were found; None where there are none."""
        return self.found / self.true if self.true else None

    @property
    def f1(self) -> float | None:
        """2 found / (true + predicted); None where there are neither."""
        return 2 * self.found / (self.true + self.predicted) if self.true or self.predicted else None


def match_lesions(pred: NDArray[np.bool_], truth: NDArray[np.bool_]) -> Lesions:
    """Count and match the lesions of two masks, (H, W) or (D, H, W)."""
    from scipy.ndimage import label

    either = pred | truth
    if not either.any():
        return Lesions(0, 0, 0)
    box = bounding_box(either)
    pred, truth = pred[box], truth[box]
    near = np.ones((3,) * pred.ndim, bool)
    (pred_ids, predicted), (true_ids, true) = (label(mask, near) for mask in (pred, truth))
    both = pred & truth
    codes, shared = np.unique(true_ids[both] * np.int64(predicted + 1) + pred_ids[both], return_counts=True)
    pairs = np.stack(np.divmod(codes, predicted + 1))
    true_sizes, pred_sizes = np.bincount(true_ids[truth]), np.bincount(pred_ids[pred])
    iou = shared / (true_sizes[pairs[0]] + pred_sizes[pairs[1]] - shared)
    return Lesions(true, predicted, _most_pairs(pairs[:, iou >= MATCH_IOU]))


def _most_pairs(pairs: NDArray[np.integer[Any]]) -> int:
    """How many of the pairs, (2, N) ids, can be taken if no id is taken twice."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import maximum_bipartite_matching

    if not pairs.size:
        return 0
    graph = csr_array((np.ones(pairs.shape[1], bool), tuple(pairs)))
    return int(np.count_nonzero(maximum_bipartite_matching(graph) >= 0))
