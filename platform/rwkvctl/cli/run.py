"""`rwkvctl run list | show | logs | wait | stop | resume | rerun | rm | replay | compare | paired | export`: one
noun for every run, here or on a cluster."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rwkvctl.cli import run_compare, run_export

if TYPE_CHECKING:
    from rwkvctl.runs.state import RunState

app = typer.Typer(no_args_is_help=True)
app.command()(run_compare.compare)
app.command()(run_compare.paired)
app.command()(run_export.export)

Run = Annotated[str, typer.Argument(metavar="RUN", help="Name, path or MLflow id of a run.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Detach = Annotated[
    bool, typer.Option("--detach", help="Return when it is started; it goes on when this terminal is closed.")
]
POLL = 1.0
"""Seconds between two looks at a run."""


def find(run: str) -> Path:
    from rwkvctl.config import settings
    from rwkvctl.runs import folder as run_folder

    return run_folder.find(run, settings.load().storage)


@app.command(name="list")
def list_runs(as_json: Json = False) -> None:
    """List the runs, newest first: what each is doing, how far it is, and where."""
    from rwkvctl.config import settings
    from rwkvctl.launch import observe
    from rwkvctl.runs import folder as run_folder

    storage = settings.load().storage
    rows = observe.observe(run_folder.folders(storage))
    if as_json:
        print(json.dumps([row.fields() for row in rows], indent=2))
        return
    if not rows:
        print(f"no runs in {storage}")
        return
    table = [["RUN", "JOB", "STATE", "STEP", "LAST METRIC", "AGE", "WHERE", "WHY"], *map(cells, rows)]
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    for row in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def cells(row: RunState) -> list[str]:
    """A row of the list."""
    step = "-" if row.step is None else f"{row.step}/{row.total}" if row.total else str(row.step)
    metric = "-" if row.value is None else f"{row.metric} {row.value:.4f}"
    return [row.run, row.job, row.state, step, metric, age(row.updated), row.where, row.reason]


def age(since: float | None) -> str:
    """`40 s`, `12 min`, `3 h`, `5 d`."""
    if since is None:
        return "-"
    seconds = max(0.0, time.time() - since)
    for limit, unit, size in ((120, "s", 1), (7200, "min", 60), (172800, "h", 3600)):
        if seconds < limit:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86400:.0f} d"


@app.command()
def show(run: Run, as_json: Json = False) -> None:
    """Show one run: its state, its progress, where it is and what it computes."""
    from rwkvctl.launch import observe
    from rwkvctl.runs import folder as run_folder

    folder = find(run)
    found, spec = observe.one(folder), run_folder.read_spec(folder)
    mlflow = run_folder.mlflow_run_id(folder)
    if as_json:
        more = {"mlflow_run": mlflow, "result": run_folder.result(folder)}
        print(json.dumps(found.fields() | more | {"spec": spec.model_dump(mode="json", by_alias=True)}, indent=2))
        return
    _, job, state, step, metric, since, where, reason = cells(found)
    data = getattr(spec, "data", None) or getattr(getattr(spec, "base", None), "data", None)
    rows = {
        "run": found.run,
        "job": job,
        "state": f"{state} ({reason})" if reason else state,
        "exit code": "" if found.exit_code is None else str(found.exit_code),
        "step": step,
        "last": f"{metric}, {since} ago",
        "where": where,
        "submission": found.submission_id or "",
        "data": getattr(data, "path", data) or "",
        "folder": found.path,
        "MLflow run": mlflow or "",
    }
    for name, value in rows.items():
        if value:
            print(f"{name:<12}{value}")
    if (table := run_folder.trials(folder)) is not None:
        from rwkvctl.cli import show as results

        results.sweep(folder, table)
    print("\n".join(f"  {line}" for line in next_commands(folder, found)))


def next_commands(folder: Path, found: RunState) -> list[str]:
    """What can be done with it now."""
    from rwkvctl.runs.folder import command

    if not found.ended:
        return [command("logs -f", folder), command("stop", folder)]
    if found.state == "done":
        return [command("logs", folder), command("rerun", folder)]
    return [command("logs", folder), command("resume", folder)]


@app.command()
def logs(
    run: Run,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on until the run ends.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the journal's entries, one JSON object a line.")
    ] = False,
) -> None:
    """Print what a run says: from its folder, or from the job server of its cluster."""
    from rwkvctl.launch import cluster_job, observe
    from rwkvctl.launch.job_server import JobServer, Unreachable
    from rwkvctl.runs import folder as run_folder
    from rwkvctl.runs import job_record

    folder = find(run)
    found = observe.one(folder)
    if not as_json and found.address is not None and found.submission_id is not None:
        if follow and not found.ended:
            sys.exit(cluster_job.follow(found.job, folder, found.address, found.submission_id, sys.stdout))
        try:
            if text := JobServer(found.address).logs(found.submission_id):
                print(cluster_job.without_entrypoint(text), end="")
                return
        except Unreachable as error:
            print(f"note: the cluster does not answer ({error}); this is the run's journal", file=sys.stderr)
    output = folder / job_record.OUTPUT
    if not as_json and output.exists() and job_record.read(folder).get("detached"):
        for part in growing(output, folder, follow):
            print(part.decode(errors="replace"), end="", flush=True)
    else:
        print_journal(folder / run_folder.JOURNAL, folder, follow, as_json)
    if follow:
        sys.exit(observe.one(folder).code())


def growing(path: Path, folder: Path, follow: bool) -> Iterator[bytes]:
    """The content of a file; with `follow` what is added too, until the run has ended."""
    from rwkvctl.launch import observe

    offset, last = 0, not follow
    while True:
        if path.exists():
            with path.open("rb") as file:
                file.seek(offset)
                if text := file.read():
                    offset += len(text)
                    yield text
        if last:
            return
        last = observe.one(folder).ended  # once more after the end
        time.sleep(POLL / 2)


def print_journal(path: Path, folder: Path, follow: bool, as_json: bool) -> None:
    """A journal's lines, as the job prints them or as they are."""
    from rwkvctl.runs.lines import PlainView

    view, rest = PlainView(), b""
    for text in growing(path, folder, follow):
        *lines, rest = (rest + text).split(b"\n")
        for line in lines:
            if as_json:
                print(line.decode(), flush=True)
                continue
            try:
                view.show(json.loads(line))
            except (ValueError, KeyError, TypeError):  # a damaged line hides no other
                continue


@app.command()
def wait(run: Run, as_json: Json = False) -> None:
    """Wait until a run has ended, and exit with its exit code."""
    from rwkvctl.launch import cluster_job, observe
    from rwkvctl.launch.job_server import Unreachable
    from rwkvctl.runs.folder import command

    folder = find(run)
    found = observe.one(folder)
    patience = cluster_job.Patience(found.address or "", lambda: command("wait", folder))
    while not found.ended:
        if found.reason == observe.SILENT:
            patience.wait(Unreachable(found.address))
        else:
            patience.answered()
            time.sleep(POLL)
        found = observe.one(folder)
    if as_json:
        print(json.dumps(found.fields(), indent=2))
    else:
        print(f"{found.run}: {found.state}" + (f" ({found.reason})" if found.reason else ""))
    sys.exit(found.code())


@app.command()
def stop(
    run: Run,
    now: Annotated[bool, typer.Option("--now", help="Without another checkpoint.")] = False,
    as_json: Json = False,
) -> None:
    """Stop a run: it writes a checkpoint and ends with exit code 3, and can be resumed."""
    from rwkvctl.launch import stop_run
    from rwkvctl.runs.folder import command

    folder = find(run)
    found = stop_run.stop_run(folder, now=now, say=lambda text: print(text, file=sys.stderr, flush=True))
    if as_json:
        print(json.dumps(found.fields(), indent=2))
        return
    at = f" at step {found.step}" if found.step else ""
    how = "start it again" if found.job == "evaluate" else "continue"
    verb = "rerun" if found.job == "evaluate" else "resume"
    print(f"run {found.run}: {found.state}{at}; {how} with: {command(verb, folder)}")


@app.command()
def resume(run: Run, detach: Detach = False, as_json: Json = False) -> None:
    """Continue a run from its latest checkpoint, as `rwkvctl JOB --resume RUN` does."""
    from rwkvctl.base.errors import UserError
    from rwkvctl.cli import assemble, execute
    from rwkvctl.runs import folder as run_folder

    folder = find(run)
    job, name = run_folder.read_spec(folder).job, str(folder)
    if job == "tune":
        spec: Any = assemble.tune_spec(None, None, None, {}, [], name, None, None, None, None)
    elif job in ("pretrain", "finetune"):
        spec = assemble.training_spec(job, None, None, {}, [], name)
    else:
        again = run_folder.command("rerun", folder)
        raise UserError(f"run {folder.name}: a job of kind {job} has no checkpoints; start it anew with: {again}")
    execute.start(job, spec, resume=name, dry_run=False, as_json=as_json, detach=detach)


@app.command()
def rerun(
    run: Run,
    name: Annotated[str | None, typer.Option(help="Name of the new run.")] = None,
    detach: Detach = False,
    as_json: Json = False,
) -> None:
    """Start the spec of a run anew, as a run of its own."""
    from rwkvctl.cli import execute
    from rwkvctl.runs import folder as run_folder

    spec = run_folder.read_spec(find(run)).model_copy(update={"name": name})
    execute.start(spec.job, spec, resume=None, dry_run=False, as_json=as_json, detach=detach)


@app.command()
def rm(
    run: Run,
    yes: Annotated[bool, typer.Option("--yes", help="Delete; without it nothing is deleted.")] = False,
    as_json: Json = False,
) -> None:
    """Delete a run's folder, with its checkpoints and its model. What is registered in MLflow stays."""
    from rwkvctl.base.errors import UserError
    from rwkvctl.launch import observe
    from rwkvctl.runs import mirror
    from rwkvctl.runs.folder import command

    folder = find(run)
    found = observe.one(folder)
    if not found.ended:
        raise UserError(f"run {found.run}: is {found.state}; stop it first with: {command('stop', folder)}")
    files = [path for path in folder.rglob("*") if path.is_file()]
    size = sum(path.lstat().st_size for path in files)
    what = f"{folder} ({len(files)} files, {size / 1e6:.1f} MB"
    what += ", with its model)" if (folder / "model").exists() else ")"
    if not yes:
        raise UserError(f"run {found.run}: this would delete {what}; add --yes to delete it")
    mirror.discard(folder)
    shutil.rmtree(folder)
    print(json.dumps({"deleted": str(folder)}) if as_json else f"deleted {what}")


@app.command()
def replay(run: Run) -> None:
    """Repeat the step at which a run met NaN or infinity, and say where the first such value comes from."""
    from rwkvctl.base.processes import run_group

    code = run_group([sys.executable, "-P", "-m", "rwkv_jobs.replay", str(find(run))])
    if code:
        sys.exit(code)
