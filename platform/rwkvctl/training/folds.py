"""How the scores of a cross-validation differ from fold to fold."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from rwkvctl.training.metrics import Choices, ClassScore, figures_of, summarise


def by_fold(
    cases: Mapping[str, Sequence[ClassScore]], classes: Sequence[str], choices: Choices, fold_of: Mapping[str, int]
) -> dict[str, Any]:
    """`each`: the number of cases and the means over them and over classes of each fold; `mean` and `deviation` of
    these means: the folds have the same weight, and the deviation is that of a sample (n - 1)."""
    each = []
    for fold in sorted(set(fold_of.values())):
        own = {key: list(scores) for key, scores in cases.items() if fold_of[key] == fold}
        found = summarise(own, list(classes), choices)
        each.append({"fold": fold, "cases": len(own)} | {name: found["mean"][name] for name in figures_of(found)})
    return spread(each)


def spread(each: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """`each` fold's figures with their `mean` and `deviation`; where no fold has a figure, None."""
    names = [name for name in each[0] if name not in ("fold", "cases")]
    known = {name: [fold[name] for fold in each if fold[name] is not None] for name in names}
    return {
        "each": list(each),
        "mean": {name: statistics.fmean(values) if values else None for name, values in known.items()},
        "deviation": {name: statistics.stdev(values) if len(values) > 1 else None for name, values in known.items()},
    }
