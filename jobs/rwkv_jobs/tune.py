"""A sweep: Optuna chooses the trials and keeps the record of them, Ray places and runs them.

python -m rwkv_jobs.tune RUN_FOLDER
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rwkv_jobs import driver, finetune, folds, pretrain
from rwkv_jobs.trial_here import Here
from rwkv_jobs.trial_loop import Loop
from rwkvctl.base.errors import JobFailedError
from rwkvctl.base.files import write_json
from rwkvctl.config.specs.jobs import FinetuneSpec, TuneSpec
from rwkvctl.launch import preflight
from rwkvctl.runs import folder as run_folder
from rwkvctl.runs.folder import TRIALS
from rwkvctl.runs.journal import Journal, say
from rwkvctl.sweeps import report, warm_start
from rwkvctl.sweeps.study import Study, open_storage
from rwkvctl.sweeps.table import table


def check(spec: TuneSpec, run_dir: Path) -> None:
    """Whether the model that is varied can be trained, and the study be kept; `launch.preflight` has checked the
    space."""
    warm_start.check(spec)
    if spec.study_storage is not None:
        open_storage(spec, run_dir)
    if isinstance(spec.base, FinetuneSpec):
        finetune.check(spec.base, run_dir)
    else:
        pretrain.check(spec.base, run_dir)


def run(spec: TuneSpec, run_dir: Path) -> dict[str, Any]:
    """Run the trials that the study still lacks, and hand back its table."""
    study = Study(spec, run_dir)
    if spec.warm_start is not None:
        say(run_dir, warm_start.take_over(spec, study))
    for what, value in preflight.sweep_plan(spec, preflight.load_manifest(spec.base)).items():
        say(run_dir, f"{what}: {value}")
    failures = run_trials(spec, run_dir, study) if study.lacking() else []
    study.end()
    summary = table(spec, study)
    if spec.folds is None:
        summary["importance"] = report.importance(spec, study)
        page = report.write(spec, study, summary, run_dir / "artifacts" / "sweep")
        summary["page"] = str(page.relative_to(run_dir))
    write_json(run_dir / TRIALS, summary)
    if failures:  # what is found is kept with the run all the same
        with Journal(run_dir / run_folder.JOURNAL) as journal:
            driver.record_artifacts(journal, run_dir)
    finish(spec, run_dir, study, failures)
    return summary if spec.folds is None else summary | folds.finish(spec, run_dir, summary["others"])


def run_trials(spec: TuneSpec, run_dir: Path, study: Study) -> list[str]:
    """Train what is lacking; why trials failed that did."""
    with places(spec) as pool, Loop(spec, run_dir, study, pool) as loop:
        loop.run()
    return loop.failures


@contextmanager
def places(spec: TuneSpec) -> Iterator[Any]:
    """Where trials are trained: in processes that Ray starts, or in this one."""
    if spec.cluster.launcher == "process":
        yield Here()
        return
    from rwkv_jobs.trial_runner import Pool
    from rwkvctl.launch.session import ray_session

    with ray_session(spec.cluster):
        yield Pool(spec)


def finish(spec: TuneSpec, run_dir: Path, study: Study, failures: list[str]) -> None:
    """Say why there are fewer trials than were asked for; JobFailedError if that is because some failed."""
    done, size = len(study.concluded()), spec.space.size()
    if failures:
        command = f"rwkvctl tune --space {spec.space_name} --resume {run_dir.name}"
        if spec.folds is not None:
            command = run_folder.command("resume", run_dir)
        again = f"to try those that failed again: {command}"
        if not done:
            raise JobFailedError(f"all {len(failures)} trials failed; the last: {failures[-1][:120]}")
        raise JobFailedError(
            f"{len(failures)} of {done + len(failures)} trials failed; the last: {failures[-1][:120]}. The others are "
            f"listed in {run_dir / TRIALS}; {again}"
        )
    if done < spec.trials:
        say(
            run_dir,
            f"space {spec.space_name} has {size} points and each has been tried: {done} trials, not {spec.trials}",
        )


if __name__ == "__main__":
    from rwkv_jobs.entry import main

    main("tune")
