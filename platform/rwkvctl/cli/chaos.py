"""`rwkvctl chaos`: does a training on this machine, with this storage, survive what can happen to it?"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

SHORT = 60
"""Characters of a temporary folder: the paths of sockets, which lie in it, may have 107."""


def chaos(
    seed: Annotated[int, typer.Option(min=0, help="Seed of the faults and of the data.")] = 0,
    faults: Annotated[int, typer.Option(min=1, max=1000, help="How many faults to inject.")] = 20,
    kind: Annotated[
        list[str] | None, typer.Option(metavar="KIND", help="Only faults of this kind; repeatable.")
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(help="Folder for the runs, on the file system to be tried; by default a temporary one."),
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the folder with runs, logs and records.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON; progress goes to standard error.")] = False,
) -> None:
    """Kill, suspend and damage a small training at random, and compare it with one that was left alone.

    Exit code 1 if a sample, a metric or a bit of the weights was lost or doubled, or if it did not come to its end.
    """
    from rwkvctl.base.exit_codes import FAILED
    from rwkvctl.base.processes import interrupt_on_stop
    from rwkvctl.launch.chaos import campaign, plan, report

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    drawn = plan.draw(seed, faults, kind)
    with folders(storage, keep=keep) as (work, runs):
        interrupt_on_stop()
        os.environ["RWKVCTL_HOME"] = str(work / "home")
        outcome = campaign.run(drawn, seed, work, runs, say)
        if keep:
            say(f"kept in {work}" + ("" if runs.is_relative_to(work) else f" and {runs}"))
    if as_json:
        print(json.dumps(report.fields(outcome, seed), indent=2))
    else:
        print("\n".join(report.table(outcome)))
    if not outcome.holds:
        sys.exit(FAILED)


@contextmanager
def folders(storage: str | None, *, keep: bool) -> Iterator[tuple[Path, Path]]:
    """A new folder for everything, and one for the runs: in it, or in `storage`. Both are deleted unless `keep`."""
    import tempfile

    from rwkvctl.base.errors import UserError
    from rwkvctl.runs.mirror import is_uri

    if storage is not None and is_uri(storage):
        raise UserError(f"--storage {storage}: give a folder; runs in an object store are not tried by this command")
    short = tempfile.gettempdir() if len(tempfile.gettempdir()) < SHORT else "/tmp"
    work = Path(tempfile.mkdtemp(prefix="rwkvctl-", dir=short))
    made = [work]
    try:
        runs = work / "runs"
        if storage is not None:
            try:
                runs = Path(tempfile.mkdtemp(prefix="rwkvctl-chaos-", dir=Path(storage).absolute()))
            except OSError as error:
                raise UserError(f"--storage {storage}: cannot be written to ({error.strerror})") from None
            made.append(runs)
        yield work, runs
    except UserError:
        keep = False
        raise
    finally:
        for folder in made if not keep else []:
            shutil.rmtree(folder, ignore_errors=True)
