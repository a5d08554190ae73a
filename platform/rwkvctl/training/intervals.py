"""How far the means of an evaluation can be trusted, and what they are over patients instead of cases.

Cases of one patient, sequence or video are alike, so where the data set knows such groups it is they that the bootstrap
draws, each with all of its cases: an interval over frames of few videos would be far too narrow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwkvctl.training.metrics import Choices, ClassScore
from rwkvctl.training.paired import LEVEL, RESAMPLES

BATCH = 1000
"""Draws at once; with it they are those of `paired.interval`."""

LARGEST = 4_000_000
"""Numbers drawn at once: 32 MB."""

Values = NDArray[np.float64]


def reliability(
    cases: Mapping[str, Sequence[ClassScore]],
    classes: Sequence[str],
    choices: Choices,
    group_of: Mapping[str, str | None],
) -> dict[str, Any]:
    """What to add to a summary of `metrics.summarise`: `intervals` and, if there are groups of several cases, `groups`.

    group_of: of each case its patient, sequence or video, or None. A case without one is a group of its own.
    """
    figures = choices.figures()
    names = [group_of.get(key) or f"case {key}" for key in cases]
    grouped = len(set(names)) < len(names)
    number_of: dict[str, int] = {}
    unit = [number_of.setdefault(name, len(number_of)) for name in (names if grouped else cases)]
    values = np.array(
        [
            [[_number(getattr(score, field)) for field in figures.values()] for score in scores]
            for scores in cases.values()
        ]
    )  # (cases, classes, figures)
    sums, counts = (np.zeros((len(number_of), *values.shape[1:])) for _ in range(2))
    np.add.at(sums, unit, np.nan_to_num(values))
    np.add.at(counts, unit, ~np.isnan(values))
    organs = [classes[score.class_id] for score in next(iter(cases.values()))]
    by_class, mean = _bootstrap(sums, counts)
    found: dict[str, Any] = {
        "intervals": {
            "level": LEVEL,
            "over": f"{len(number_of)} {'groups' if grouped else 'cases'}",
            "classes": {
                organ: dict(zip(figures, ends, strict=True)) for organ, ends in zip(organs, by_class, strict=True)
            },
            "mean": dict(zip(figures, mean, strict=True)),
        }
    }
    if grouped:
        of_groups = _mean(sums, counts)  # (groups, classes, figures)
        each = _over(of_groups, 1)
        sizes = np.bincount(unit)
        found["groups"] = {
            "count": len(number_of),
            "mean": _named(figures, _over(_over(of_groups, 0), 0)),
            "each": {
                name: {"cases": int(size)} | _named(figures, row)
                for name, size, row in zip(number_of, sizes, each, strict=True)
            },
        }
    return found


def _bootstrap(sums: Values, counts: Values) -> tuple[list[list[Any]], list[Any]]:
    """Intervals of the means, from sums and counts of (units, classes, figures): by class and figure, and by figure of
    the mean over classes; [low, high], or None where fewer than two units have a value."""
    units = len(sums)
    rng = np.random.default_rng(0)
    flat_sums, flat_counts = sums.reshape(units, -1), counts.reshape(units, -1)
    drawn: list[Values] = []
    batch = min(BATCH, max(1, LARGEST // units))
    for begin in range(0, RESAMPLES, batch):
        size = min(batch, RESAMPLES - begin)
        picks = rng.integers(0, units, (size, units)) + units * np.arange(size)[:, None]
        weights = np.bincount(picks.ravel(), minlength=size * units).reshape(size, units).astype(np.float64)
        drawn.append(_mean(weights @ flat_sums, weights @ flat_counts).reshape(size, *sums.shape[1:]))
    means = np.concatenate(drawn)  # (draws, classes, figures)
    enough = np.count_nonzero(counts, axis=0) > 1
    by_class = [[_ends(means[:, c, f], enough[c, f]) for f in range(enough.shape[1])] for c in range(len(enough))]
    over_classes = _over(means, 1)
    return by_class, [_ends(over_classes[:, f], enough[:, f].any()) for f in range(enough.shape[1])]


def _ends(means: Values, enough: np.bool_) -> list[float] | None:
    """Both ends of the interval; a draw in which no unit has a value says nothing."""
    if not enough:
        return None
    known = means[~np.isnan(means)]
    low, high = np.percentile(known, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return [float(low), float(high)]


def _mean(sums: Values, counts: Values) -> Values:
    """NaN where nothing was counted."""
    return np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)


def _over(values: Values, axis: int) -> Values:
    """The mean along an axis of those that are there."""
    there = ~np.isnan(values)
    return _mean(np.nan_to_num(values).sum(axis=axis), there.sum(axis=axis).astype(np.float64))


def _number(value: float | None) -> float:
    return np.nan if value is None else value


def _named(figures: Mapping[str, str], row: Values) -> dict[str, float | None]:
    return {figure: None if np.isnan(value) else float(value) for figure, value in zip(figures, row, strict=True)}
