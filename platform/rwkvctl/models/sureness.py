"""What `certainty` says of a mask, and what cases are ranked by. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple


class Sureness(NamedTuple):
    """Of one case."""

    predicted_dsc: list[float | None]
    """By class id from 1 on; None for a class that is not in the mask."""
    entropy: float | None
    """The mean over the predicted foreground, in nats; None where there is none."""

    @property
    def mean_dsc(self) -> float:
        """Over the classes that are in the mask; 0 for an empty one, which a person should look at."""
        return mean(self.predicted_dsc) or 0.0


def together(volumes: Sequence[Sureness | None]) -> Sureness | None:
    """Of a case of several volumes, each class's mean over those that have it; None unless it is known of all."""
    known = [each for each in volumes if each is not None]
    if not known or len(known) < len(volumes):
        return None
    predicted = [mean(values) for values in zip(*(each.predicted_dsc for each in known), strict=True)]
    return Sureness(predicted, mean([each.entropy for each in known]))


def mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def ranks(cases: Mapping[str, Sureness]) -> dict[str, int]:
    """1 for the case with the lowest predicted DSC: the one to look at first."""
    return {key: place for place, key in enumerate(sorted(cases, key=lambda key: (cases[key].mean_dsc, key)), start=1)}


def spearman(first: list[float], second: list[float]) -> float | None:
    """Rank correlation; None for fewer than three pairs, or where one side has a single value."""
    if len(first) < 3 or len(set(first)) < 2 or len(set(second)) < 2:
        return None
    from scipy import stats

    found: Any = stats.spearmanr(first, second)
    return float(found.statistic)
