"""`rwkvctl run compare | paired`: several runs beside one another."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rwkvctl.base.errors import UserError

if TYPE_CHECKING:
    from rwkvctl.reports.runs import Row

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
LONGEST = 50
"""Rows of a table, the best ones."""
WIDEST = 6
"""Differing fields that a table has columns for; `--json` and `--csv` have all."""


def compare(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN...", help="Names, paths or MLflow ids; a sweep is its trials.")
    ],
    metrics: Annotated[list[str] | None, typer.Option("--metric", help="Repeatable [default: DSC]")] = None,
    at: Annotated[int | None, typer.Option(min=0, help="Compare at this step, not by best and last.")] = None,
    picture: Annotated[Path | None, typer.Option(help="Draw the curves: .png, .svg or .pdf.")] = None,
    as_json: Json = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
) -> None:
    """Compare runs: what differs in their specs, then metrics, best and last; and the spread over seeds."""
    from rwkvctl.config import settings
    from rwkvctl.reports import runs as reports
    from rwkvctl.runs import folder as run_folder
    from rwkvctl.runs.stored_journal import refresh

    storage = settings.load().storage
    found = [folder for run in runs for folder in reports.expand(run_folder.find(run, storage))]
    folders = list(dict.fromkeys(found))
    if len(folders) < 2:
        raise UserError(f"{', '.join(runs)}: give two runs or more, or a sweep with two trials")
    for folder in folders:
        refresh(folder)
    facts = reports.read_all(folders)
    names = reports.chosen(facts, metrics or [])
    rows, spread = reports.rows(facts, names, at), reports.spread(facts, names, at)
    if picture is not None:
        reports.draw(facts, names, picture)
    if as_json:
        print(json.dumps({"runs": [asdict(row) for row in rows], "seeds": [asdict(row) for row in spread]}, indent=2))
    elif as_csv:
        print_csv(rows, names)
    else:
        print_tables(rows, spread, names, at)
        if picture is not None:
            print(picture)


def print_tables(rows: list[Row], spread: list[Row], metrics: list[str], at: int | None) -> None:
    from rich.table import Table

    from rwkvctl.cli.show import number, wide_console

    fields = list(rows[0].fields)
    console = wide_console()
    if not fields:
        console.print("the specs compute the same")
    left = fields[WIDEST:]
    for title, group in (("", rows), ("over seeds: mean and standard deviation", spread)):
        if not group:
            continue
        table = Table(title=title or None, title_justify="left")
        table.add_column("run")
        shown = [path for path in fields[:WIDEST] if path in group[0].fields]
        for path in shown:
            table.add_column(path, justify="right")
        for name in metrics:
            heading = f"{name} at {at}" if at is not None else f"{name} {'best' if group is rows else 'mean of best'}"
            table.add_column(heading, justify="right")
            if at is None or group is spread:
                table.add_column("last" if group is rows else "deviation", justify="right")
        for row in group[:LONGEST]:
            cells = [row.fields[path] for path in shown]
            for name in metrics:
                values = row.values[name]
                step = values.get("best_step")
                cells.append(number(values["best"]) + (f" ({step})" if step is not None else ""))
                if at is None or group is spread:
                    cells.append(number(values.get("last" if group is rows else "deviation")))
            table.add_row(row.run, *cells)
        console.print(table)
        if len(group) > LONGEST:
            console.print(f"and {len(group) - LONGEST} more (--csv)")
    if left:
        console.print(
            f"{len(left)} more fields differ: {', '.join(left[:8])}{', ...' if len(left) > 8 else ''} (--json)"
        )


def print_csv(rows: list[Row], metrics: list[str]) -> None:
    import csv
    import sys

    kinds = ("best", "best_step", "last", "last_step")
    writer = csv.writer(sys.stdout)
    writer.writerow(["run", *rows[0].fields, *(f"{name} {kind}" for name in metrics for kind in kinds)])
    for row in rows:
        writer.writerow(
            [row.run, *row.fields.values(), *(row.values[name][kind] for name in metrics for kind in kinds)]
        )


def paired(
    first: Annotated[str, typer.Argument(help="An evaluation: its run.")],
    second: Annotated[str, typer.Argument(help="Another, of the same part of the same data.")],
    metric: Annotated[str, typer.Option(help="Column of cases.csv.")] = "dsc_strict",
    as_json: Json = False,
) -> None:
    """Compare two models case by case: mean difference, 95 % interval, Wilcoxon test."""
    from rwkvctl.config import settings
    from rwkvctl.training import paired as tests

    storage = settings.load().storage
    tables = [cases_of(run, storage) for run in (first, second)]
    ours, theirs = (
        tests.case_scores(table, metric, f"run {run}") for table, run in zip(tables, (first, second), strict=True)
    )
    found = tests.paired(metric, ours, theirs)
    if as_json:
        print(json.dumps(asdict(found) | {"verdict": found.verdict()}, indent=2))
        return
    print(f"{metric} over {found.cases} cases: {first} {found.first:.4f}, {second} {found.second:.4f}")
    print(f"difference {found.difference:+.4f}, 95 % interval {found.low:+.4f} to {found.high:+.4f}")
    print(f"{first} is better in {found.better} cases and worse in {found.worse}; Wilcoxon p {found.p:.2g}")
    if found.left_out:
        print(f"{found.left_out} cases are left out: one of the two has no {metric} there")
    print(
        {"undecided": "undecided: the interval contains 0, or p is not below 0.05"}.get(
            found.verdict(), f"{first} is {found.verdict()}"
        )
    )


def cases_of(run: str, storage: str) -> str:
    """The text of an evaluation's table of cases, or of a training's on its validation part."""
    from rwkvctl.runs import folder as run_folder
    from rwkvctl.runs import mirror

    folder = run_folder.find(run, storage)
    mirror.pull(folder, "artifacts/")
    tables = sorted((folder / "artifacts").glob("*/cases.csv"))
    if not tables:
        raise UserError(f"run {folder.name}: has no scores of cases; evaluate it with: rwkvctl evaluate {folder.name}")
    return tables[0].read_text()
