"""`rwkvctl study`: the paper's tables, what trains each row, and how our figures compare."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated, Any

import typer

app = typer.Typer(no_args_is_help=True)
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Name = Annotated[str, typer.Argument(help="A study of ours, or the path of a YAML file.")]


@app.command(name="list")
def list_(as_json: Json = False) -> None:
    """List the studies that are shipped."""
    from rwkvctl.config.specs.study import read_study, study_names

    studies = {name: read_study(name) for name in study_names()}
    if as_json:
        print(json.dumps({name: study.model_dump() for name, study in studies.items()}, indent=2))
        return
    for name, study in studies.items():
        print(f"{name:18} {study.title}  ({len(study.rows)} rows; {', '.join(study.datasets)})")


@app.command()
def show(name: Name, as_json: Json = False) -> None:
    """Print the commands that train a study's rows."""
    from rwkvctl.config.specs.study import read_study
    from rwkvctl.reports.studies import command

    study = read_study(name)
    rows = {
        row.label: [command(study, row, dataset) for dataset in study.datasets] if row.set is not None else []
        for row in study.rows
    }
    if as_json:
        print(json.dumps({"title": study.title, "rows": rows}, indent=2))
        return
    print(study.title)
    for label, commands in rows.items():
        print(label + ("" if commands else ": cited only"))
        for line in commands:
            print(f"  {line}")


@app.command()
def run(
    name: Name,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of every row, from the recipe's seed on.")] = 1,
    rows: Annotated[list[str] | None, typer.Option("--row", help="Only the row of this label; repeatable.")] = None,
    data: Annotated[
        list[str] | None, typer.Option("--data", metavar="DATASET=PATH", help="Where a data set is; repeatable.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Another budget than the recipe's.")] = None,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="For all rows; repeatable.")
    ] = None,
    at_once: Annotated[int, typer.Option("--concurrency", min=1, help="Trainings at the same time.")] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be run.")] = False,
) -> None:
    """Train and evaluate all rows that are not done yet; the same command goes on where it was stopped.

    Exit code 1 if a training or an evaluation failed; the others are done all the same.
    """
    import sys
    from pathlib import Path

    from rwkvctl.base.errors import UserError
    from rwkvctl.base.paths import home
    from rwkvctl.base.processes import interrupt_on_stop
    from rwkvctl.config import settings
    from rwkvctl.config.specs.study import read_study
    from rwkvctl.launch import study_runs

    machine, study, stem = settings.load(), read_study(name), Path(name).stem
    wrong = [each for each in data or [] if not all(each.partition("="))]
    if wrong:
        raise UserError(f"--data {wrong[0]}: give DATASET=PATH")
    budget = [] if epochs is None else [f"train.epochs={epochs}"]
    choice = study_runs.Choice(
        seeds=seeds,
        rows=tuple(rows or ()),
        data={key: value for key, _, value in (each.partition("=") for each in data or [])},
        assignments=(*budget, *(assignments or ())),
    )
    chosen = study_runs.cells(stem, study, choice)
    if dry_run:
        for each in chosen:
            print(f"{each.label}\n  rwkvctl {' '.join(each.words)}")
        return
    parent = study_runs.parent_run(stem, study.title, machine.tracking_uri)
    if parent is not None:
        chosen = study_runs.cells(stem, study, study_runs.under(choice, parent))
    interrupt_on_stop()
    runner = study_runs.Runner(machine.storage, home() / "studies" / stem, print_now)
    runner.run(chosen, at_once)
    if runner.elsewhere:
        print(f"{len(runner.elsewhere)} of {len(chosen)} are being run elsewhere: {', '.join(runner.elsewhere[:3])}")
    if runner.failed:
        print(
            f"failed: {len(runner.failed)} of {len(chosen)} trainings are not done; the same command tries them again",
            file=sys.stderr,
        )
        raise typer.Exit(1)
    print(f"next: rwkvctl study report {name}")


def print_now(text: str) -> None:
    print(text, flush=True)


@app.command()
def report(
    name: Name,
    out: Annotated[str | None, typer.Option(help="Folder for Markdown, CSV, LaTeX and a figure.")] = None,
    as_json: Json = False,
) -> None:
    """Print parameters and MACs beside the paper's, and DSC and HD95 where tracked runs exist."""
    from rwkvctl.config import settings
    from rwkvctl.config.specs.study import read_study
    from rwkvctl.registry.versions import all_versions
    from rwkvctl.reports.studies import report as table_of

    study = read_study(name)
    rows = table_of(study, all_versions(settings.load().tracking_uri))
    written = []
    if out is not None:
        from pathlib import Path

        from rwkvctl.reports import study_table

        written = study_table.write(study, rows, Path(name).stem, Path(out))
    if as_json:
        table: list[dict[str, Any]] = [asdict(row) | {"paper": row.paper.model_dump()} for row in rows]
        print(json.dumps({"title": study.title, "rows": table}, indent=2))
        return
    from rwkvctl.cli import show as tables

    tables.study(study, rows)
    for path in written:
        print(path)
