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
def report(name: Name, as_json: Json = False) -> None:
    """Print parameters and MACs beside the paper's, and DSC and HD95 where tracked runs exist."""
    from rwkvctl.config import settings
    from rwkvctl.config.specs.study import read_study
    from rwkvctl.registry.versions import all_versions
    from rwkvctl.reports.studies import report as run

    study = read_study(name)
    rows = run(study, all_versions(settings.load().tracking_uri))
    if as_json:
        table: list[dict[str, Any]] = [asdict(row) | {"paper": row.paper.model_dump()} for row in rows]
        print(json.dumps({"title": study.title, "rows": table}, indent=2))
        return
    from rwkvctl.cli import show as tables

    tables.study(study, rows)
