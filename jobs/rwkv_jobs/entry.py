"""`python -m rwkv_jobs.<job>`: what the command line submits, and what torchrun or a debugger starts."""

from __future__ import annotations

import argparse
import base64
import contextlib
import importlib
import os
import sys
import traceback
from contextlib import AbstractContextManager
from pathlib import Path

import yaml

from rwkv_jobs.driver import WORKER_FUNCTIONS, drive
from rwkv_jobs.launch import torchrun_rank
from rwkvctl.base.errors import JobFailedError, NotStoredError, TransientError, UserError, explain
from rwkvctl.base.exit_codes import DONE, FAILED, INTERRUPTED, STOPPED
from rwkvctl.base.processes import interrupt_on_stop, isolate_children
from rwkvctl.base.uris import mask
from rwkvctl.config import settings
from rwkvctl.config.specs.jobs import JOBS, JobSpec, TrainingSpec
from rwkvctl.config.specs.load import build, merge, parse_assignments, read_recipe
from rwkvctl.launch.complete_spec import on_machine, with_data
from rwkvctl.launch.nursery import twin
from rwkvctl.runs import folder as run_folder
from rwkvctl.runs import job_record, mirror, stop

RESUMABLE = ("pretrain", "finetune", "tune")


def main(job: str) -> None:
    """Run one job and exit as `rwkvctl.base.exit_codes` says."""
    parser = argparse.ArgumentParser(prog=f"python -m rwkv_jobs.{job}")
    parser.add_argument("target", help="folder or URI of a run, name of a recipe, or path of a YAML file")
    parser.add_argument("--set", dest="assignments", action="append", default=[], metavar="FIELD=VALUE")
    parser.add_argument("--resume", action="store_true", help="continue the run of the spec's name, if there is one")
    arguments = parser.parse_args()
    try:
        isolate_children()
        with nursery_of(job):
            interrupt_on_stop()
            code = guarded(job, arguments.target, arguments.assignments, resume=arguments.resume)
    except KeyboardInterrupt:  # during the imports, for which whoever started this process held the signals back
        code = interrupted(job, Path(arguments.target), KeyboardInterrupt())
    sys.exit(code)


def nursery_of(job: str) -> AbstractContextManager[None]:
    """What the job's workers are forked from, if this process is to start any: itself, as it is now."""
    if job not in WORKER_FUNCTIONS or "TORCHELASTIC_RUN_ID" in os.environ:
        return contextlib.nullcontext()
    importlib.import_module(f"rwkv_jobs.{job}")  # which `python -m` knows as __main__ only
    return twin()


def guarded(job: str, target: str, assignments: list[str], *, resume: bool = False) -> int:
    """Run the job; every failure becomes an exit code, and one line where its cause is known."""
    run_dir = Path(target)
    code, reason = DONE, ""
    try:
        spec, run_dir = resolve(job, target, assignments, resume=resume)
        drive(spec, run_dir)
    except (UserError, JobFailedError) as error:
        code, reason = error.exit_code, mask(str(error))
        can_go_on = isinstance(error, TransientError) and not isinstance(error, NotStoredError)
        way_on = go_on(job, run_dir) if can_go_on else ""
        print(f"{'error' if isinstance(error, UserError) else 'failed'}: {reason}{way_on}", file=sys.stderr)
    except KeyboardInterrupt as error:
        code = interrupted(job, run_dir, error)
    except OSError as error:
        code, reason = FAILED, job_record.reason_of(error)
        if error.errno is None:  # a library's own, which its traceback explains better
            traceback.print_exc()
        else:
            print(f"failed: {mask(explain(error))}{go_on(job, run_dir)}", file=sys.stderr)
    except Exception as error:
        code, reason = FAILED, job_record.reason_of(error)
        traceback.print_exc()
    keep_code(job, run_dir, code, reason)
    return code


def interrupted(job: str, run_dir: Path, error: KeyboardInterrupt) -> int:
    """The last line of a job that was stopped; its exit code, which workers that agreed on the end share."""
    request = stop.asked(run_dir)
    code = error.code if isinstance(error, stop.Stopped) else request.code if request else INTERRUPTED
    if torchrun_rank() == 0:
        print(f"{'stopped' if code == STOPPED else 'interrupted'}{go_on(job, run_dir)}", file=sys.stderr)
        stop.clear(run_dir)
    return code


def keep_code(job: str, run_dir: Path, code: int, reason: str) -> None:
    """Leave the exit code in the run's folder, for who does not wait for this process."""
    if torchrun_rank() == 0 and job != "predict" and (run_dir / run_folder.SPEC).exists():
        with contextlib.suppress(OSError):  # the disk's own error has been told
            job_record.ended(run_dir, code, reason)


def go_on(job: str, run_dir: Path) -> str:
    """The command that continues a run, as it is to be typed."""
    if not (run_dir / run_folder.SPEC).exists():
        return ""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return "; to continue, run the same torchrun command again"
    if job not in RESUMABLE:
        return "; to start again, run the same command"
    return f"; continue with: {run_folder.resume_command(job, run_dir)}"


def resolve(job: str, target: str, assignments: list[str], *, resume: bool = False) -> tuple[JobSpec, Path]:
    """The spec and the run folder: an existing run's, or those of a recipe, in which case the run is new; with `resume`
    only if there is none of the spec's name."""
    if not mirror.is_uri(target):
        unpack(Path(target))
    if mirror.is_uri(target) or (Path(target) / run_folder.SPEC).is_file():
        run_dir = mirror.opened(target).absolute()
        spec = run_folder.read_spec(run_dir)
        if spec.job != job:
            raise UserError(f"{target}: is a {spec.job} run, not {job}")
        return spec, run_dir
    machine = settings.load()
    fields = merge(read_recipe(target), parse_assignments(assignments))
    if fields.get("job") != job:
        raise UserError(f"recipe {target}: is for {fields.get('job')}, not {job}")
    spec = build(JOBS[job], fields, f"recipe {target}")
    if isinstance(spec, TrainingSpec):
        spec = with_data(spec, machine)
    spec = on_machine(spec, machine)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return same_run(spec)
    kept = run_folder.resume("auto", spec, spec.storage or machine.storage) if resume else None
    if kept is not None:
        run_folder.adopt(kept, spec)
        return run_folder.read_spec(kept), kept
    run_dir = run_folder.create(spec, spec.storage or machine.storage)
    return run_folder.read_spec(run_dir), run_dir


def unpack(run_dir: Path) -> None:
    """The spec that was sent with a job is put into its run's folder: this machine need not see that of the sender."""
    packed = os.environ.get(job_record.SPEC_VARIABLE)
    if packed is None:
        return
    fields = yaml.safe_load(base64.b64decode(packed))
    spec = build(JOBS[fields["job"]], fields, "the spec of this job")
    if not (run_dir / run_folder.SPEC).exists():
        run_folder.create(spec, str(run_dir.parent))
    elif run_folder.read_spec(run_dir) != spec:
        run_folder.adopt(run_dir, spec)


def same_run(spec: JobSpec) -> tuple[JobSpec, Path]:
    """Under torchrun all ranks come here, and again when they are restarted: the run of the given name."""
    if spec.name is None:
        raise UserError("name: must be set under torchrun, so that all ranks join one run (--set name=...)")
    storage = settings.absolute(spec.storage or "")
    folder = mirror.place(f"{storage}/{spec.name}")
    if torchrun_rank() == 0:
        mirror.look(folder)
        if (folder / run_folder.SPEC).exists():
            run_folder.adopt(folder, spec)
        else:
            run_folder.create(spec, storage)
    return spec, folder
