"""Figures of a classifier over the images of a part, with 95 % bootstrap intervals.

Accuracy is the share of images whose most probable class is theirs; balanced accuracy the mean of the classes'
sensitivities; AUROC of a class that of its probability against all other classes (ties count half), their mean over the
classes that have both; ECE as in `calibration`, of the probability of the chosen class in 15 bins. Where the data set
knows patients or sequences, it is they that the bootstrap draws.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwkvctl.training import folds
from rwkvctl.training.paired import LEVEL, RESAMPLES

BINS = 15
LARGEST = 4_000_000
"""Numbers drawn at once: 32 MB."""
MOST_DRAWN = 500_000_000
"""Images x classes x draws; for more than that there are no intervals."""
MEANS = ("accuracy", "balanced_accuracy", "auroc", "ece")
OF_CLASS = ("sensitivity", "precision", "auroc")

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Answers:
    """What a classifier said of images. probabilities: (N, classes); labels: (N,); groups: of each key its patient,
    sequence or video, or None."""

    keys: Sequence[str]
    labels: NDArray[np.int64]
    probabilities: Floats
    groups: Sequence[str | None]
    in_top5: NDArray[np.bool_] | None = None
    """(N,) whether the class of an image is among the five most probable ones, where that was told by more digits than
    `probabilities` has."""

    @property
    def chosen(self) -> NDArray[np.int64]:
        """(N,) the most probable class."""
        return self.probabilities.argmax(axis=1)


def summarise(answers: Answers, classes: Sequence[str]) -> dict[str, Any]:
    """A dictionary ready for JSON: `cases`, `mean` (MEANS), `by_class` (OF_CLASS and `images`), `confusion` (rows are
    the true classes), `intervals` of the means and of the classes, `top1` and `top5` in percent. None where a figure
    has no value."""
    ones = np.ones((1, len(answers.labels)))
    mean, of_class = figures(answers, ones)
    n = len(classes)
    confusion = np.bincount(answers.labels * n + answers.chosen, minlength=n * n).reshape(n, n)
    in_top5 = answers.in_top5
    if in_top5 is None:
        ranked = np.argsort(-answers.probabilities, axis=1, kind="stable")[:, :5]
        in_top5 = (ranked == answers.labels[:, None]).any(axis=1)
    found: dict[str, Any] = {
        "task": "classification",
        "cases": len(answers.labels),
        "mean": {name: _plain(mean[name][0]) for name in MEANS},
        "by_class": {
            label: {"images": int(confusion[number].sum())}
            | {name: _plain(of_class[name][0, number]) for name in OF_CLASS}
            for number, label in enumerate(classes)
        },
        "confusion": confusion.tolist(),
        "top1": 100 * float(mean["accuracy"][0]),
        "top5": 100 * float(in_top5.mean()),
    }
    if len(answers.labels) * n * RESAMPLES <= MOST_DRAWN:
        found["intervals"] = intervals(answers, classes)
    return found


def by_fold(answers: Answers, fold_of: Mapping[str, int]) -> dict[str, Any]:
    """As `folds.by_fold` has it: the means of each fold, their mean and their deviation."""
    numbers = np.array([fold_of[key] for key in answers.keys])
    each = []
    for fold in sorted(set(fold_of.values())):
        rows = np.flatnonzero(numbers == fold).tolist()
        own = Answers(
            [answers.keys[row] for row in rows],
            answers.labels[rows],
            answers.probabilities[rows],
            [answers.groups[row] for row in rows],
        )
        mean, _ = figures(own, np.ones((1, len(rows))))
        each.append({"fold": fold, "cases": len(rows)} | {name: _plain(mean[name][0]) for name in MEANS})
    return folds.spread(each)


def intervals(answers: Answers, classes: Sequence[str]) -> dict[str, Any]:
    """Of the means, and of the figures of every class."""
    names = [group or f"case {key}" for key, group in zip(answers.keys, answers.groups, strict=True)]
    number_of: dict[str, int] = {}
    unit = np.array([number_of.setdefault(name, len(number_of)) for name in names])
    units, rng = len(number_of), np.random.default_rng(0)
    batch = max(1, LARGEST // max(units, len(unit)))
    drawn: list[tuple[dict[str, Floats], dict[str, Floats]]] = []
    for begin in range(0, RESAMPLES, batch):
        size = min(batch, RESAMPLES - begin)
        picks = rng.integers(0, units, (size, units)) + units * np.arange(size)[:, None]
        weights = np.bincount(picks.ravel(), minlength=size * units).reshape(size, units).astype(np.float64)
        drawn.append(figures(answers, weights[:, unit]))
    means = {name: np.concatenate([mean[name] for mean, _ in drawn]) for name in MEANS}
    by_class = {name: np.concatenate([own[name] for _, own in drawn]) for name in OF_CLASS}
    return {
        "level": LEVEL,
        "over": f"{units} {'groups' if units < len(unit) else 'cases'}",
        "mean": {name: _ends(values) for name, values in means.items()},
        "classes": {
            label: {name: _ends(values[:, number]) for name, values in by_class.items()}
            for number, label in enumerate(classes)
        },
    }


def figures(answers: Answers, weights: Floats) -> tuple[dict[str, Floats], dict[str, Floats]]:
    """MEANS (B,) and OF_CLASS (B, classes), for each of B rows of weights (B, N) of the images; NaN without a value."""
    labels, chosen, count = answers.labels, answers.chosen, answers.probabilities.shape[1]
    right = (labels == chosen).astype(np.float64)

    def by(classes: NDArray[np.int64], values: Floats | None = None) -> Floats:
        own = np.zeros((len(labels), count))
        own[np.arange(len(labels)), classes] = 1.0 if values is None else values
        return weights @ own

    hits = by(labels, right)
    sensitivity = _ratio(hits, by(labels))
    auroc = np.stack([aurocs(answers.probabilities[:, c], labels == c, weights) for c in range(count)], axis=1)
    of_class = {"sensitivity": sensitivity, "precision": _ratio(hits, by(chosen)), "auroc": auroc}
    mean = {
        "accuracy": weights @ right / weights.sum(axis=1),
        "balanced_accuracy": _over(sensitivity),
        "auroc": _over(auroc),
        "ece": eces(answers.probabilities.max(axis=1), right, weights),
    }
    return mean, of_class


def aurocs(scores: Floats, positive: NDArray[np.bool_], weights: Floats) -> Floats:
    """(B,) the probability that a positive has a higher score than a negative, ties by half; NaN without both."""
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.append(True, np.diff(scores[order]) > 0))
    own = weights[:, order]
    above = np.add.reduceat(own * positive[order], starts, axis=1)
    below = np.add.reduceat(own * ~positive[order], starts, axis=1)
    before = np.cumsum(below, axis=1) - below / 2
    return _ratio((above * before).sum(axis=1), above.sum(axis=1) * below.sum(axis=1))


def eces(confidence: Floats, right: Floats, weights: Floats) -> Floats:
    """(B,) expected calibration errors."""
    bins = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
    gap = np.zeros((len(confidence), BINS))
    gap[np.arange(len(confidence)), bins] = right - confidence
    return np.abs(weights @ gap).sum(axis=1) / weights.sum(axis=1)


def _ratio(above: Floats, below: Floats) -> Floats:
    return np.divide(above, below, out=np.full(above.shape, np.nan), where=below > 0)


def _over(values: Floats) -> Floats:
    """(B,) the mean over classes of those that have a value."""
    there = ~np.isnan(values)
    return _ratio(np.nan_to_num(values).sum(axis=1), there.sum(axis=1).astype(np.float64))


def _ends(values: Floats) -> list[float] | None:
    known = values[~np.isnan(values)]
    if len(known) < 2:
        return None
    low, high = np.percentile(known, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return [float(low), float(high)]


def _plain(value: Any) -> float | None:
    return None if np.isnan(value) else float(value)
