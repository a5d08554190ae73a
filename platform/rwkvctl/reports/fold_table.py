"""The folds of a cross-validation as a part of an evaluation's page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rwkvctl.base import html


def fixed(value: float | None) -> str | None:
    """A score with four decimals, a distance with two."""
    if value is None:
        return None
    return f"{value:.4f}" if abs(value) < 10 else f"{value:.2f}"


def section(summary: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """A row a fold, their mean and its deviation; nothing where the cases are not those of folds."""
    found = summary.get("folds")
    if not found:
        return []
    rows = [[one["fold"], one["cases"], *(fixed(one[name]) for name in names)] for one in found["each"]]
    rows += [[label, "", *(fixed(found[label][name]) for name in names)] for label in ("mean", "deviation")]
    said = (
        "Cross-validation: every case was scored by the model that did not see it in its training. Which weights of a "
        "training were kept was chosen by the cases of its fold, so new cases would score a little lower. Deviation: "
        "of the folds' means, n - 1."
    )
    return [f"<h2>Folds</h2><p>{said}</p>", html.table(["fold", "cases", *names], rows, name="folds", sortable=True)]
