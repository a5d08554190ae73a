"""The driver of a job: checks, journal, tracking, progress around what the job itself does."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from rwkv_jobs.launch import torchrun_rank
from rwkv_jobs.progress import Progress
from rwkv_jobs.stopping import watched
from rwkvctl.base.errors import UserError
from rwkvctl.base.exit_codes import STOPPED
from rwkvctl.base.files import write_json
from rwkvctl.config.specs.changes import flatten
from rwkvctl.config.specs.jobs import JobSpec, PredictSpec, ServeSpec, TuneSpec
from rwkvctl.config.specs.parts import RESOLVED_AT_START
from rwkvctl.launch import preflight
from rwkvctl.registry.cases import TABLE
from rwkvctl.runs import folder as run_folder
from rwkvctl.runs import job_record, mirror, provenance, stop
from rwkvctl.runs.journal import Journal, say
from rwkvctl.runs.journal_mirrors import JournalMirrors
from rwkvctl.runs.lease import LeaseLost, RunLease
from rwkvctl.runs.reconcile import reconciled
from rwkvctl.runs.sync import Syncer
from rwkvctl.runs.uploader import followed

ORPHANS_END_WITHIN = 40.0
"""Seconds after which a worker of another machine that was cut off has lost its lease."""
FIRST_SENT_AFTER = 10.0
"""Seconds until the journal is first sent to MLflow and its mirrors, whose imports must not hold up the workers."""
UNRESOLVED = [(f"train.{field}", "auto") for field in RESOLVED_AT_START]
WORKER_FUNCTIONS = {"pretrain": "train", "finetune": "train", "evaluate": "score"}
"""What torchrun's other ranks run of a job."""


def drive(spec: JobSpec, run_dir: Path) -> dict[str, Any]:
    """Run a job from its spec to its result, which is left in `result.json`. Ranks other than 0 only work."""
    job = importlib.import_module(f"rwkv_jobs.{spec.job}")
    mirror.pull(run_dir)
    check(job, spec, run_dir)
    if torchrun_rank() > 0:
        getattr(job, WORKER_FUNCTIONS[spec.job])(spec, run_dir)
        return {}
    if isinstance(spec, PredictSpec):  # masks are no experiment: nothing to track
        result = job.run(spec, run_dir)
        write_json(run_dir / run_folder.RESULT, result)
        return result
    if isinstance(spec, ServeSpec):
        return job.run(spec, run_dir)
    mirror.remove(run_dir, run_folder.RESULT)
    with watched(spec, run_dir), reconciled(run_dir), followed(run_dir), Progress(run_dir):
        # The lease waits for workers that outlived a killed driver, and refuses a run that another job is writing.
        with RunLease(run_dir) as lease, Journal(run_dir / run_folder.JOURNAL, lease=lease) as journal:
            job_record.begun(run_dir)
            start(journal, spec, run_dir)
        with tracked(spec, run_dir) as syncer:
            result = job.run(spec, run_dir)
            with Journal(run_dir / run_folder.JOURNAL) as journal:
                record_artifacts(journal, run_dir)
        for uri in [] if result.get("model_uri") else filter(None, [syncer.outcomes.get("model_uri")]):
            say(run_dir, f"registered {uri}")
        result = result | syncer.outcomes | {"run": run_dir.name, "run_id": run_folder.mlflow_run_id(run_dir)}
        write_json(run_dir / run_folder.RESULT, result)
    return result


def check(job: ModuleType, spec: JobSpec, run_dir: Path) -> None:
    """Data, cluster and model, before the run says a word; a new run that cannot work leaves no folder behind,
    unless nobody is there to read why."""
    try:
        preflight.check(spec)
        preflight.check_mirrors(spec)
        job.check(spec, run_dir)
    except UserError:
        told = not job_record.read(run_dir).get("detached")
        if torchrun_rank() == 0 and told:
            run_folder.discard_unbegun(run_dir)
        raise


def start(journal: Journal, spec: JobSpec, run_dir: Path) -> None:
    """The first entries of a run, or of its continuation."""
    fields = flatten(spec.model_dump(mode="json", by_alias=True))
    journal.event("start", run=run_dir.name, job=fields["job"])
    journal.event("message", text=f"run {run_dir.name} in {mirror.address(run_dir)}")
    open_yet = {key for key, value in fields.items() if value is None or (key, value) in UNRESOLVED}
    journal.params({key: value for key, value in fields.items() if key not in open_yet})
    provenance.record(journal, run_dir, spec.job)
    journal.artifact(run_dir / run_folder.SPEC)


@contextmanager
def tracked(spec: JobSpec, run_dir: Path) -> Iterator[Syncer]:
    """Send the journal to MLflow and to its mirrors while the block runs, and how it ended."""
    syncer = Syncer(run_dir, spec.tracking.uri or "", spec.tracking.experiment, parent=spec.tracking.parent)
    sweep = isinstance(spec, TuneSpec)
    if sweep:  # Optuna and MLflow both use it, and two threads that import it at once may each get half of it
        importlib.import_module("sqlalchemy")
    mirrors = JournalMirrors(run_dir, spec.tracking.mirrors or ())
    syncer.start(delay=0.0 if sweep else FIRST_SENT_AFTER)
    mirrors.start(delay=FIRST_SENT_AFTER)
    if sweep:  # its trials look for its MLflow run
        syncer.settle(5.0 if (spec.tracking.uri or "").startswith("http") else 120.0)
    status: str | None = "FAILED"
    reason = ""
    try:
        yield syncer
        status = "FINISHED"
    except KeyboardInterrupt:
        request = stop.asked(run_dir)
        status, reason = "KILLED", "stopped" if request and request.code == STOPPED else "interrupted"
        raise
    except LeaseLost:
        status = None  # the run is another job's now, and has not ended
        raise
    except Exception as error:
        reason = job_record.reason_of(error)
        raise
    finally:
        if status is not None:
            end(run_dir, status, reason, spec)
        mirrors.close()
        syncer.close()


def end(run_dir: Path, status: str, reason: str, spec: JobSpec) -> None:
    """Note how the run ended, when the last of its workers has gone; where the disk takes nothing, in MLflow alone."""
    with contextlib.suppress(UserError, OSError), RunLease(run_dir, wait=ORPHANS_END_WITHIN):
        pass  # waited for, and what a killed worker held is given back
    try:
        with Journal(run_dir / run_folder.JOURNAL) as journal:
            journal.event("end", status=status, **({"reason": reason} if reason else {}))
    except OSError:
        run_id = run_folder.mlflow_run_id(run_dir)
        with contextlib.suppress(Exception):  # of whatever a server can do; the disk's own error is on its way
            from rwkvctl.runs.mlflow_client import connect

            if run_id is not None:
                connect(spec.tracking.uri or "").set_terminated(run_id, status)


def record_artifacts(journal: Journal, run_dir: Path) -> None:
    """Pages and pictures that the job has left; the table of cases was sent when it was written."""
    for path in sorted((run_dir / "artifacts").rglob("*")):
        if path.is_file() and path.name != TABLE:
            journal.artifact(path, str(path.parent.relative_to(run_dir / "artifacts")).removeprefix("."))
