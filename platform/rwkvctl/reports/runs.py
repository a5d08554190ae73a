"""Runs side by side: what differs in their specs first, then their metrics, best and last, and the spread over seeds.

From the runs' folders alone: no server is asked, so that a thousand runs take seconds.
"""

from __future__ import annotations

import contextlib
import json
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from rwkvctl.base.directions import smaller_is_better
from rwkvctl.base.errors import UserError
from rwkvctl.base.suggestions import did_you_mean
from rwkvctl.config.specs.changes import flatten
from rwkvctl.pictures import figures
from rwkvctl.runs import folder as run_folder

UNSAID = ("name", "storage", "cluster", "tracking")
"""Fields that say where and how a run went, not what it computes."""
SEED = "seed"
PREFERRED = ("test/dsc_strict/mean", "best_val/dsc_strict/mean", "val/dsc_strict/mean", "val/top1", "train/loss")
"""What runs are compared by where nothing is said: the first that any of them has."""


@dataclass
class Series:
    """A metric of one run: (step, value) in the order of steps."""

    points: list[tuple[int, float]] = field(default_factory=list)

    def last(self) -> tuple[int, float]:
        return self.points[-1]

    def best(self, *, smaller: bool) -> tuple[int, float] | None:
        """The best finite value, the first of equal ones."""
        finite = [point for point in self.points if math.isfinite(point[1])]
        return (min if smaller else max)(finite, key=lambda point: point[1], default=None)

    def at(self, step: int) -> tuple[int, float] | None:
        """The value at a step, or the last one before it."""
        return max((point for point in self.points if point[0] <= step), default=None)


@dataclass
class Facts:
    """What a run's folder says of it."""

    run: str
    spec: dict[str, Any]
    """Flat: path -> value."""
    journal: bytes
    series: dict[str, Series | None] = field(default_factory=dict)
    """The metrics that were asked for."""

    def metric(self, name: str) -> Series | None:
        """A metric, or None: only lines that have it are parsed, a tenth of most journals."""
        if name not in self.series:
            points = [(entry["step"], value) for entry in self.entries(f"{json.dumps(name, ensure_ascii=False)}: ")
                      if (value := number(entry["values"].get(name))) is not None]  # fmt: skip
            self.series[name] = Series(points) if points else None
        return self.series[name]

    def names(self) -> set[str]:
        """Of all its metrics."""
        return {name for entry in self.entries("") for name in entry["values"]}

    def entries(self, text: str) -> Iterator[dict[str, Any]]:
        """The journal's lines of metrics with a text in them; one that is being written, or torn, is none."""
        if (sought := text.encode()) not in self.journal:
            return
        for line in self.journal.splitlines():
            if sought in line and b'"kind": "metrics"' in line:
                with contextlib.suppress(ValueError):
                    entry = json.loads(line)
                    if isinstance(entry.get("values"), dict) and isinstance(entry.get("step"), int):
                        yield entry


def number(value: Any) -> float | None:
    """A metric's value as the journal has it: NaN and infinities are text."""
    try:
        return None if value is None else float(value)
    except (ValueError, TypeError):
        return None


def read(folder: Path) -> Facts:
    """UserError for a folder whose spec cannot be read."""
    try:
        fields = yaml.load((folder / run_folder.SPEC).read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        spec = flatten(fields)
    except (OSError, yaml.YAMLError, AttributeError) as error:
        raise UserError(f"{folder / run_folder.SPEC}: cannot be read ({' '.join(str(error).split())[:80]})") from None
    path = folder / run_folder.JOURNAL
    return Facts(folder.name, spec, path.read_bytes() if path.exists() else b"")


def read_all(folders: Iterable[Path]) -> list[Facts]:
    return [read(folder) for folder in folders]


def expand(folder: Path) -> list[Path]:
    """A sweep stands for its trials."""
    trials = sorted(path.parent for path in (folder / "trials").glob(f"*/{run_folder.SPEC}"))
    return trials or [folder]


def chosen(facts: Sequence[Facts], metrics: Sequence[str]) -> list[str]:
    """The metrics that are asked for, `dsc_strict` standing for its mean on the test or the validation part; by default
    one of `PREFERRED`. UserError with near matches for one that no run has."""

    def has(name: str) -> bool:
        return any(each.metric(name) is not None for each in facts)

    def known() -> list[str]:
        return sorted(set().union(*(each.names() for each in facts)))

    wanted = []
    for name in metrics:
        meant = [name, *(f"{part}/{name}/mean" for part in ("test", "best_val", "val"))]
        if (found := next(filter(has, meant), None)) is None:
            raise UserError(f"--metric {name}: none of the runs has it; {did_you_mean(name, known())}")
        wanted.append(found)
    if wanted:
        return wanted
    preferred = next(filter(has, PREFERRED), None)
    return [preferred] if preferred else known()[:1]


def differing(facts: Sequence[Facts]) -> list[str]:
    """Fields in which the runs would compute something else, the most telling first: with the fewest values."""
    paths = {path for each in facts for path in each.spec if path.split(".")[0] not in UNSAID}
    first = facts[0].spec
    paths = {path for path in paths if any(each.spec.get(path) != first.get(path) for each in facts)}
    counts = {path: len({text(each.spec.get(path)) for each in facts}) for path in paths}
    return sorted((path for path, count in counts.items() if count > 1), key=lambda path: (counts[path], path))


def text(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else "-" if value is None else str(value)


@dataclass
class Row:
    """One run, or all runs of one spec but for the seed."""

    run: str
    fields: dict[str, str]
    values: dict[str, dict[str, float | int | None]]
    """By metric: `best`, `best_step`, `last`, `last_step`; of several seeds `mean`, `deviation` and `runs`."""


def rows(facts: Sequence[Facts], metrics: Sequence[str], step: int | None = None) -> list[Row]:
    """A row a run, the best first by the first metric.

    step: compare at this step (or the last before it) instead of by best and last.
    """
    fields = differing(facts)
    found = [
        Row(
            each.run,
            {path: text(each.spec.get(path)) for path in fields},
            {name: values(each.metric(name), name, step) for name in metrics},
        )
        for each in facts
    ]
    return sorted(found, key=lambda row: rank(row, metrics))


def values(series: Series | None, name: str, step: int | None) -> dict[str, float | int | None]:
    if series is None or not series.points:
        return {"best": None, "best_step": None, "last": None, "last_step": None}
    if step is not None:
        at = series.at(step)
        return {"best": at and at[1], "best_step": at and at[0], "last": at and at[1], "last_step": at and at[0]}
    best, last = series.best(smaller=smaller_is_better(name)), series.last()
    return {"best": best and best[1], "best_step": best and best[0], "last": last[1], "last_step": last[0]}


def rank(row: Row, metrics: Sequence[str]) -> tuple[bool, float, str]:
    """Runs without the metric come last."""
    value = row.values[metrics[0]]["best"] if metrics else None
    return value is None, (value or 0.0) * (1 if metrics and smaller_is_better(metrics[0]) else -1), row.run


def spread(facts: Sequence[Facts], metrics: Sequence[str], step: int | None = None) -> list[Row]:
    """A row for every spec that several seeds were trained of: mean and standard deviation of their best values."""
    fields = [path for path in differing(facts) if path != SEED]
    groups: dict[tuple[str, ...], list[Facts]] = {}
    for each in facts:
        groups.setdefault(tuple(text(each.spec.get(path)) for path in fields), []).append(each)
    found = []
    for key, members in groups.items():
        if len(Counter(text(each.spec.get(SEED)) for each in members)) < 2:
            continue
        row = Row(f"{len(members)} runs", dict(zip(fields, key, strict=True)), {})
        for name in metrics:
            best = [values(each.metric(name), name, step)["best"] for each in members]
            known = [value for value in best if value is not None]
            row.values[name] = {
                "best": statistics.fmean(known) if known else None,
                "deviation": statistics.stdev(known) if len(known) > 1 else None,
                "runs": len(known),
            }
        found.append(row)
    return sorted(found, key=lambda row: rank(row, metrics))


def draw(facts: Sequence[Facts], metrics: Sequence[str], out: Path) -> None:
    """A panel a metric, a curve a run."""
    with figures.written(out, width=7, height=3.2 * len(metrics)) as figure:
        for axis, name in zip(figure.subplots(len(metrics), squeeze=False)[:, 0], metrics, strict=True):
            for each in facts:
                points = (each.metric(name) or Series()).points
                steps, heights = [step for step, _ in points], [value for _, value in points]
                axis.plot(steps, heights, label=each.run, linewidth=1, marker="o" if len(points) == 1 else None)
            axis.set(xlabel="step", ylabel=name)
            axis.grid(alpha=0.3)
            if len(facts) <= 12:
                axis.legend(fontsize=7)
