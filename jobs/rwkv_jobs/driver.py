"""The driver of a job: checks, journal, tracking, progress around what the job itself does."""

from __future__ import annotations

import contextlib
import importlib
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import rwkvctl
from rwkv_jobs.launch import torchrun_rank
from rwkv_jobs.progress import Progress
from rwkvctl import networks, preflight, runs
from rwkvctl.data.manifest import Manifest
from rwkvctl.files import write_json
from rwkvctl.specs.jobs import FinetuneSpec, JobSpec, PredictSpec, PretrainSpec, TuneSpec
from rwkvctl.tracking.journal import Journal
from rwkvctl.tracking.lease import LeaseLost, RunLease
from rwkvctl.tracking.sync import Syncer


def drive(spec: JobSpec, run_dir: Path) -> dict[str, Any]:
    """Run a job from its spec to its result, which is left in `result.json`. Ranks other than 0 only train."""
    job = importlib.import_module(f"rwkv_jobs.{spec.job}")
    check(spec)
    if torchrun_rank() > 0:
        job.train(spec, run_dir)
        return {}
    if isinstance(spec, PredictSpec):  # masks are no experiment: nothing to track
        result = job.run(spec, run_dir)
        write_json(run_dir / runs.RESULT, result)
        return result
    (run_dir / runs.RESULT).unlink(missing_ok=True)
    with Progress(run_dir):
        # The lease waits for workers that outlived a killed driver, and refuses a run that another job is writing.
        with RunLease(run_dir) as lease, Journal(run_dir / runs.JOURNAL, lease=lease) as journal:
            start(journal, spec, run_dir)
        with tracked(spec, run_dir):
            result = job.run(spec, run_dir)
            with Journal(run_dir / runs.JOURNAL) as journal:
                record_artifacts(journal, run_dir)
        result = result | {"run": run_dir.name, "run_id": runs.mlflow_run_id(run_dir)}
        write_json(run_dir / runs.RESULT, result)
    return result


def check(spec: JobSpec) -> None:
    """Data, cluster and model, before the run says a word."""
    preflight.check(spec)
    training = spec.base if isinstance(spec, TuneSpec) else spec
    if isinstance(training, PretrainSpec | FinetuneSpec):
        networks.check(training.model, Manifest.load(training.data.path or "").classes)


def start(journal: Journal, spec: JobSpec, run_dir: Path) -> None:
    """The first entries of a run, or of its continuation."""
    fields = runs.flatten(spec.model_dump(mode="json", by_alias=True))
    journal.event("start", run=run_dir.name, job=fields["job"])
    journal.event("message", text=f"run {run_dir.name} in {run_dir}")
    journal.params({key: value for key, value in fields.items() if value is not None})
    journal.tags({"rwkvctl.version": rwkvctl.__version__, "mlflow.source.git.commit": git_commit() or "unknown"})
    journal.artifact(run_dir / runs.SPEC)


def git_commit() -> str | None:
    """Commit of the code that runs, when it runs from a git checkout."""
    folder = Path(__file__).parent
    found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=False)
    return found.stdout.strip() if found.returncode == 0 else None


@contextmanager
def tracked(spec: JobSpec, run_dir: Path) -> Iterator[None]:
    """Send the journal to MLflow while the block runs, and how it ended."""
    syncer = Syncer(run_dir, spec.tracking.uri or "", spec.tracking.experiment, parent=spec.tracking.parent)
    with contextlib.suppress(Exception):  # the background thread tries again, and says what is wrong
        syncer.push()
    syncer.start()
    status: str | None = "FAILED"
    try:
        yield
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    except LeaseLost:
        status = None  # the run is another job's now, and has not ended
        raise
    finally:
        if status is not None:
            with Journal(run_dir / runs.JOURNAL) as journal:
                journal.event("end", status=status)
        syncer.close()


def record_artifacts(journal: Journal, run_dir: Path) -> None:
    """Tables and pictures that the job has left."""
    for path in sorted((run_dir / "artifacts").rglob("*")):
        if path.is_file():
            journal.artifact(path, str(path.parent.relative_to(run_dir / "artifacts")).removeprefix("."))
