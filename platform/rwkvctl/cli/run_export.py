"""`rwkvctl run export`: runs leave MLflow."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from rwkvctl.base.errors import UserError


def export(
    out: Annotated[str, typer.Option(help="Folder to write, or to go on with.")],
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[WHAT]...", help="Names, paths or MLflow ids; a sweep or a study comes with all its runs."
        ),
    ] = None,
    experiment: Annotated[str | None, typer.Option(help="All runs of this MLflow experiment.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Take runs out of MLflow: tables of runs and points (Parquet), files, a manifest; again, only what is new."""
    if not runs and experiment is None:
        raise UserError("run export: give runs, or --experiment NAME for all of an experiment")
    if "://" in out:
        raise UserError(f"--out {out}: give a folder of this machine, and copy it from there")
    from rwkvctl.config import settings
    from rwkvctl.runs import export as exports

    machine = settings.load()
    chosen = exports.wanted(runs or [], machine.storage, machine.tracking_uri)
    if experiment is not None:
        chosen.append(exports.Wanted(machine.tracking_uri, experiment=experiment))
    done = exports.export(chosen, Path(out), lambda text: print(text, file=sys.stderr, flush=True))
    if as_json:
        print(json.dumps(asdict(done) | {"out": out}, indent=2))
        return
    running = f", {done.running} of them still running: export them again when they have ended" if done.running else ""
    print(f"{out}: {done.runs} runs, {done.points} points, {done.files} files, {done.bytes / 1e6:.1f} MB{running}")
    print(f"fetched now: {done.fetched_files} files, {done.fetched_bytes / 1e6:.1f} MB")
