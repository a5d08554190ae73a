"""Figures as files: drawn without a display, written whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rwkvctl.base import files
from rwkvctl.base.errors import UserError

FORMATS = (".png", ".svg", ".pdf")


@contextmanager
def written(out: Path, *, width: float, height: float) -> Iterator[Any]:
    """A matplotlib figure of so many inches, saved to `out` when the block ends well."""
    from matplotlib.figure import Figure

    if out.suffix not in FORMATS:
        raise UserError(f"--out {out}: a figure ends in {', '.join(FORMATS)}")
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    yield figure
    with files.atomic_path(out) as temporary:
        figure.savefig(temporary)


@dataclass(frozen=True)
class Point:
    """A model in a plot of accuracy against cost: DSC in [0, 1], MACs of one image, parameters."""

    label: str
    dsc: float
    macs: int
    parameters: int


def accuracy_against_macs(points: Sequence[Point], title: str, out: Path) -> None:
    """Fig. 4: DSC in % against MACs in G; the area of a circle is the number of parameters."""
    with written(out, width=7, height=4.5) as figure:
        axis = figure.subplots()
        for point in points:
            axis.scatter(point.macs / 1e9, 100 * point.dsc, s=max(8, point.parameters / 5e4), alpha=0.5)
            place = (point.macs / 1e9, 100 * point.dsc)
            axis.annotate(point.label, place, xytext=(4, 4), textcoords="offset points", fontsize=7)
        axis.set(title=title, xlabel="MACs, G (paper's convention)", ylabel="DSC, %")
        axis.grid(alpha=0.3)
