"""A study's report as files: Markdown, CSV, LaTeX, and a figure of DSC against MACs."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from rwkvctl.base.files import write_bytes
from rwkvctl.config.specs.study import StudySpec
from rwkvctl.pictures import figures
from rwkvctl.reports.studies import Row, Score

MARK = "*"
"""Beside figures that cannot be compared with the paper's."""


def write(study: StudySpec, rows: Sequence[Row], stem: str, folder: Path) -> list[Path]:
    """Write `STEM.md`, `.csv`, `.tex` and, where anything was scored, `.png`; returns their paths."""
    made = []
    for ending, text in (("md", markdown(study, rows)), ("csv", as_csv(study, rows)), ("tex", latex(study, rows))):
        made.append(folder / f"{stem}.{ending}")
        write_bytes(made[-1], text.encode())
    points = [
        figures.Point(f"{row.label}, {dataset}", score.dsc / 100, row.macs, row.parameters or 0)
        for row in rows
        for dataset, score in row.scores.items()
        if row.macs is not None
    ]
    if points:
        made.append(folder / f"{stem}.png")
        figures.accuracy_against_macs(points, study.title, made[-1])
    return made


def headings(study: StudySpec, rows: Sequence[Row]) -> list[str]:
    found = ["row", "M", "M, paper", "G MACs", "G, paper"]
    for dataset in study.datasets:
        found += [f"DSC {dataset}, %", "paper"]
        if has_hd95(rows, dataset):
            found += [f"HD95 {dataset}", "paper"]
    return found


def has_hd95(rows: Sequence[Row], dataset: str) -> bool:
    return any(dataset in row.paper.hd95 for row in rows)


def cells(study: StudySpec, row: Row, rows: Sequence[Row], plus_minus: str = "±") -> list[str]:
    """A row of the table; `*` marks what cannot be compared with the paper's."""
    found = [
        row.label,
        number(row.parameters and row.parameters / 1e6, 2),
        number(row.paper.parameters, 2),
        number(row.macs and row.macs / 1e9, 3),
        number(row.paper.macs, 2),
    ]
    for dataset in study.datasets:
        score = row.scores.get(dataset)
        found += [spread(score, "dsc", plus_minus), number(row.paper.dsc.get(dataset), 2)]
        if has_hd95(rows, dataset):
            found += [spread(score, "hd95", plus_minus), number(row.paper.hd95.get(dataset), 2)]
    return found


def spread(score: Score | None, name: str, plus_minus: str) -> str:
    """`81.20 ± 0.35 (3)`: mean, standard deviation, runs."""
    value = None if score is None else getattr(score, name)
    if score is None or value is None:
        return "-"
    deviation = getattr(score, f"{name}_deviation")
    around = "" if deviation is None else f" {plus_minus} {deviation:.2f}"
    return f"{value:.2f}{around} ({score.runs}){MARK if score.differs else ''}"


def number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def notes(study: StudySpec, rows: Sequence[Row]) -> list[str]:
    """What to know before one compares: the convention, and for each mark what differs."""
    found = [
        f"Ours: mean, standard deviation over seeds and number of runs, of the test part, by the paper's convention "
        f"(`official`), {study.image_size} px; HD95 in voxels."
    ]
    differing: dict[str, list[str]] = {}
    for row in rows:
        for dataset, score in row.scores.items():
            if score.differs:
                differing.setdefault("; ".join(score.differs), []).append(f"{row.label} ({dataset})")
    for what, where in differing.items():
        named = "all that were trained" if len(where) == sum(len(row.scores) for row in rows) else ", ".join(where)
        found.append(f"{MARK} not comparable with the paper: {what}: {named}.")
    return found


def markdown(study: StudySpec, rows: Sequence[Row]) -> str:
    lines = [f"# {study.title}", "", "| " + " | ".join(headings(study, rows)) + " |"]
    lines += ["|---|" + "---:|" * (len(headings(study, rows)) - 1)]
    lines += ["| " + " | ".join(cells(study, row, rows)) + " |" for row in rows]
    return "\n".join([*lines, "", *notes(study, rows), ""])


def as_csv(study: StudySpec, rows: Sequence[Row]) -> str:
    """Raw numbers, a line a row and data set."""
    text = io.StringIO()
    names = ["parameters", "macs", "dsc", "dsc_deviation", "hd95", "hd95_deviation", "runs", "epochs"]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["row", "dataset", *names, "differs", "paper_dsc", "paper_hd95", "paper_parameters_m", "paper_macs_g"]
    )
    for row in rows:
        for dataset in study.datasets:
            score = row.scores.get(dataset)
            own = [row.parameters, row.macs, *(getattr(score, name, None) for name in names[2:])]
            paper = [row.paper.dsc.get(dataset), row.paper.hd95.get(dataset), row.paper.parameters, row.paper.macs]
            differs = "; ".join(score.differs) if score else ""
            writer.writerow([row.label, dataset, *("" if x is None else x for x in own), differs,
                             *("" if x is None else x for x in paper)])  # fmt: skip
    return text.getvalue()


ESCAPES = {"\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "#": r"\#", "_": r"\_", "$": r"\$"}


def latex(study: StudySpec, rows: Sequence[Row]) -> str:
    """A `tabular` for booktabs."""
    columns = headings(study, rows)
    lines = [rf"% {study.title}", rf"\begin{{tabular}}{{l{'r' * (len(columns) - 1)}}}", r"\toprule"]
    lines += [" & ".join(map(escaped, columns)) + r" \\", r"\midrule"]
    lines += [" & ".join(map(escaped, cells(study, row, rows, "PM"))).replace("PM", r"$\pm$") + r" \\" for row in rows]
    lines += [r"\bottomrule", r"\end{tabular}", *(f"% {line}" for line in notes(study, rows)), ""]
    return "\n".join(lines)


def escaped(text: str) -> str:
    return "".join(ESCAPES.get(letter, letter) for letter in text)
