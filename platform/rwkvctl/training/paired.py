"""Two models on the same cases: is one better, or would other cases have turned it round?

Scores of one case are alike for all models (a small polyp is hard for each), so the difference is looked at case by
case: its mean with a bootstrap interval, and the Wilcoxon signed-rank test. A case is what a score belongs to: an
image, or the volume of a patient.
"""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import stats

from rwkvctl.base.directions import smaller_is_better
from rwkvctl.base.errors import UserError

RESAMPLES = 9999
LEVEL = 0.95


@dataclass(frozen=True)
class Paired:
    """The differences of two models' scores, first minus second, over `cases` that both were scored on."""

    metric: str
    cases: int
    first: float
    """Mean of the first model."""
    second: float
    difference: float
    low: float
    """Ends of the bootstrap's 95 % interval of the mean difference."""
    high: float
    p: float
    """Of the two-sided Wilcoxon signed-rank test; 1 where no case differs."""
    better: int
    """Cases in which the first model is better."""
    worse: int
    left_out: int
    """Cases in which one of the two has no such score, as an HD95 without a contour."""

    def verdict(self) -> str:
        """`better`, `worse` or `undecided`, of the first model. Decided only where both tests are: the interval does
        not contain 0, and p is below 0.05; a few cases that differ much can move the mean alone."""
        if self.low <= 0 <= self.high or self.p >= 1 - LEVEL:
            return "undecided"
        return "better" if (self.difference > 0) != smaller_is_better(self.metric) else "worse"


def paired(metric: str, first: Mapping[str, float | None], second: Mapping[str, float | None]) -> Paired:
    """Compare two models by the scores of their cases.

    Raises:
        UserError: they were not scored on the same cases, or on fewer than 2 that both have a score for.
    """
    if first.keys() != second.keys():
        only = sorted(first.keys() ^ second.keys())
        raise UserError(
            f"the two were scored on {len(first)} and {len(second)} cases, {len(only)} of them in one only "
            f"({', '.join(only[:3])}): evaluate both on the same part of the same split"
        )
    pairs = {key: (a, b) for key, a in first.items() if a is not None and (b := second[key]) is not None}
    if len(pairs) < 2:
        raise UserError(f"{len(pairs)} cases have a {metric} of both: too few to compare")
    ours, theirs = (np.array([pair[side] for pair in pairs.values()]) for side in (0, 1))
    differences = ours - theirs
    low, high = interval(differences)
    sign = -1 if smaller_is_better(metric) else 1
    return Paired(
        metric=metric,
        cases=len(pairs),
        first=float(ours.mean()),
        second=float(theirs.mean()),
        difference=float(differences.mean()),
        low=low,
        high=high,
        p=float(stats.wilcoxon(differences).pvalue) if differences.any() else 1.0,
        better=int((sign * differences > 0).sum()),
        worse=int((sign * differences < 0).sum()),
        left_out=len(first) - len(pairs),
    )


def interval(values: np.ndarray) -> tuple[float, float]:
    """The bootstrap's 95 % interval of a mean (percentiles, always the same draws)."""
    if np.ptp(values) == 0:
        return float(values[0]), float(values[0])
    found = stats.bootstrap(
        (values,), np.mean, n_resamples=RESAMPLES, confidence_level=LEVEL, method="percentile", rng=0, batch=1000
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def case_scores(table: str, metric: str, where: str) -> dict[str, float | None]:
    """One score a case, from the text of a `cases.csv`: the mean over those of its classes that have one.

    UserError, which names `where`, for a figure that the table has not.
    """
    rows = list(csv.DictReader(io.StringIO(table)))
    if not rows or metric not in rows[0]:
        known = [name for name in (rows[0] if rows else ()) if name not in ("case", "class", "note")]
        raise UserError(f"{where}: its cases have no {metric}; they have {', '.join(known) or 'no scores'}")
    found: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        found[row["case"]] += [float(row[metric])] if row[metric] else []
    return {key: float(np.mean(values)) if values else None for key, values in found.items()}
