"""`python -m rwkv_jobs.<job>`: what the command line submits, and what torchrun or a debugger starts."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from pathlib import Path

from rwkv_jobs.driver import drive
from rwkv_jobs.launch import torchrun_rank
from rwkvctl.base.errors import JobFailedError, UserError, explain
from rwkvctl.base.exit_codes import DONE, FAILED, INTERRUPTED
from rwkvctl.base.processes import interrupt_on_stop, isolate_children
from rwkvctl.base.uris import mask
from rwkvctl.config import settings
from rwkvctl.config.specs.jobs import JOBS, JobSpec, TrainingSpec
from rwkvctl.config.specs.load import build, merge, parse_assignments, read_recipe
from rwkvctl.launch.complete_spec import on_machine, with_data
from rwkvctl.runs import folder as run_folder

RESUMABLE = ("pretrain", "finetune", "tune")


def main(job: str) -> None:
    """Run one job and exit as `rwkvctl.base.exit_codes` says."""
    parser = argparse.ArgumentParser(prog=f"python -m rwkv_jobs.{job}")
    parser.add_argument("target", help="folder of a run, name of a recipe, or path of a YAML file")
    parser.add_argument("--set", dest="assignments", action="append", default=[], metavar="FIELD=VALUE")
    parser.add_argument("--resume", action="store_true", help="continue the run of the spec's name, if there is one")
    arguments = parser.parse_args()
    try:
        isolate_children()
        interrupt_on_stop()
        code = guarded(job, arguments.target, arguments.assignments, resume=arguments.resume)
    except KeyboardInterrupt:  # during the imports, for which whoever started this process held the signals back
        code = interrupted(job, Path(arguments.target))
    sys.exit(code)


def guarded(job: str, target: str, assignments: list[str], *, resume: bool = False) -> int:
    """Run the job; every failure becomes an exit code, and one line where its cause is known."""
    run_dir = Path(target)
    try:
        spec, run_dir = resolve(job, target, assignments, resume=resume)
        drive(spec, run_dir)
    except UserError as error:
        print(f"error: {mask(str(error))}", file=sys.stderr)
        return error.exit_code
    except JobFailedError as error:
        print(f"failed: {mask(str(error))}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return interrupted(job, run_dir)
    except OSError as error:
        if error.errno is None:  # a library's own, which its traceback explains better
            traceback.print_exc()
        else:
            print(f"failed: {mask(explain(error))}{go_on(job, run_dir)}", file=sys.stderr)
        return FAILED
    except Exception:
        traceback.print_exc()
        return FAILED
    return DONE


def interrupted(job: str, run_dir: Path) -> int:
    """The last line of a job that was stopped; its exit code."""
    if torchrun_rank() == 0:
        print(f"interrupted{go_on(job, run_dir)}", file=sys.stderr)
    return INTERRUPTED


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
    if (Path(target) / run_folder.SPEC).is_file():
        spec = run_folder.read_spec(Path(target))
        if spec.job != job:
            raise UserError(f"{target}: is a {spec.job} run, not {job}")
        return spec, Path(target).absolute()
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


def same_run(spec: JobSpec) -> tuple[JobSpec, Path]:
    """Under torchrun all ranks come here, and again when they are restarted: the run of the given name."""
    if spec.name is None:
        raise UserError("name: must be set under torchrun, so that all ranks join one run (--set name=...)")
    folder = Path(spec.storage or "").absolute() / spec.name
    if torchrun_rank() == 0:
        if (folder / run_folder.SPEC).exists():
            run_folder.adopt(folder, spec)
        else:
            run_folder.create(spec, str(folder.parent))
    return spec, folder
