"""A sweep: Ray Tune runs the trials, Optuna chooses them, and its study in a database is the record.

python -m rwkv_jobs.tune RUN_FOLDER
"""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState

from rwkv_jobs import finetune, points
from rwkvctl.base.errors import JobFailedError
from rwkvctl.base.files import write_json
from rwkvctl.config.specs.changes import flatten
from rwkvctl.config.specs.jobs import FinetuneSpec, TuneSpec
from rwkvctl.config.specs.load import merge
from rwkvctl.config.specs.sweep import trial_spec
from rwkvctl.launch import preflight
from rwkvctl.runs import folder as run_folder
from rwkvctl.runs.journal import say

optuna.logging.set_verbosity(optuna.logging.WARNING)


def check(spec: TuneSpec, run_dir: Path) -> None:
    """Whether the model that is varied can be trained; `launch.preflight` has checked the space."""
    finetune.check(spec.base, run_dir)


def run(spec: TuneSpec, run_dir: Path) -> dict[str, Any]:
    """Run the trials that the study still lacks, and hand back its table."""
    storage = optuna.storages.RDBStorage(spec.study_storage or f"sqlite:///{run_dir / 'study.db'}")
    study = optuna.create_study(storage=storage, study_name=run_dir.name, direction="maximize", load_if_exists=True)
    points.requeue_stale(study, storage, spec.space)
    for what, value in preflight.sweep_plan(spec, preflight.load_manifest(spec.base)).items():
        say(run_dir, f"{what}: {value}")
    count = trials_to_run(spec, study)
    errors = run_trials(spec, run_dir, study, storage, count) if count else []
    summary = summarise(spec, run_dir, study)
    write_json(run_dir / "artifacts" / "trials.json", summary)
    finish(spec, run_dir, study, errors)
    return summary


def trials_to_run(spec: TuneSpec, study: optuna.Study) -> int:
    """How many trials the study still lacks, those included that wait in it; `cover` puts them into its queue."""
    waiting = len(study.get_trials(states=(TrialState.WAITING,)))
    missing = max(0, spec.trials - complete(study))
    axes, size = spec.space.axes(), spec.space.size()
    if axes is None or size is None:
        return missing
    missing = min(missing, size - len(points.taken(study)) + waiting)
    if spec.space.cover:
        for point in points.untried(study, axes, max(0, missing - waiting)):
            study.enqueue_trial(point)
    return missing


def complete(study: optuna.Study) -> int:
    """How many trials have been trained to their end."""
    return len(study.get_trials(states=(TrialState.COMPLETE,), deepcopy=False))


def finish(spec: TuneSpec, run_dir: Path, study: optuna.Study, errors: list[Exception]) -> None:
    """Say why there are fewer trials than were asked for; JobFailedError if that is because some failed."""
    done, wanted = complete(study), min(spec.trials, spec.space.size() or spec.trials)
    if done < wanted:
        raise JobFailedError(
            f"{wanted - done} of {wanted} trials failed; the last: {reason(errors)}. The others are listed in "
            f"{run_dir / 'artifacts' / 'trials.json'}; to try those that failed again: "
            f"rwkvctl tune --space {spec.space_name} --resume {run_dir.name}"
        )
    if done < spec.trials:
        say(
            run_dir,
            f"space {spec.space_name} has {wanted} points and each has been tried: {done} trials, not {spec.trials}",
        )


def reason(errors: list[Exception]) -> str:
    """The last error of a trial in a few words, without Ray's traceback around it."""
    if not errors:
        return "unknown"
    error: BaseException = errors[-1]
    while (cause := getattr(error, "cause", None) or error.__cause__) is not None:
        error = cause
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[-1][:120]


def run_trials(
    spec: TuneSpec, run_dir: Path, study: optuna.Study, storage: optuna.storages.BaseStorage, count: int
) -> list[Exception]:
    """Ray Tune over `count` trials; a trial whose process dies is tried again from its checkpoint.

    Returns the errors of those that failed; JobFailedError if all did.
    """
    from ray import tune

    from rwkvctl.launch.session import ray_session

    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    search = searcher(spec, study, storage)
    with ray_session(spec.cluster):
        tuner = tune.Tuner(
            tune.with_resources(
                partial(run_trial, base=trial_base(spec, run_dir), run_dir=str(run_dir)), resources(spec)
            ),
            tune_config=tune.TuneConfig(search_alg=search, num_samples=count, max_concurrent_trials=spec.concurrency),
            run_config=tune.RunConfig(
                name="ray",
                storage_path=str(run_dir),
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=spec.cluster.max_failures),
                callbacks=[announcer(run_dir)],
            ),
        )
        results = tuner.fit()
    errors: list[Exception] = list(results.errors)
    if len(errors) == len(results) and not complete(study):
        raise JobFailedError(f"all {len(results)} trials failed; the last: {reason(errors)}")
    return errors


def searcher(spec: TuneSpec, study: optuna.Study, storage: optuna.storages.BaseStorage) -> Any:
    """What Ray Tune asks for the next point, and tells what came of it."""
    from ray.tune.search.optuna import OptunaSearch

    return OptunaSearch(
        space=points.distributions(spec.space),
        metric=spec.metric,
        mode="max",
        sampler=points.sampler(spec.seed, study, spec.space.axes()),
        study_name=study.study_name,
        storage=storage,
    )


def resources(spec: TuneSpec) -> dict[str, float]:
    """What one trial reserves."""
    import ray

    gpu = {"GPU": 1.0} if ray.cluster_resources().get("GPU", 0) else {}
    return {"CPU": float(spec.base.cluster.cpus_per_worker)} | gpu


def trial_base(spec: TuneSpec, run_dir: Path) -> dict[str, Any]:
    """The spec that all trials share: one process, a child of the sweep's MLflow run, no registered model."""
    fields = spec.base.model_dump(mode="json", by_alias=True)
    own = {
        "cluster": {"launcher": "process", "workers": 1, "address": None, "nodes": None},
        "data": {"workers": 0},
        "tracking": {
            "uri": spec.tracking.uri,
            "experiment": spec.tracking.experiment,
            "parent": run_folder.mlflow_run_id(run_dir),
            "register_as": "",
        },
    }
    return merge(fields, own)


def run_trial(config: dict[str, Any], *, base: dict[str, Any], run_dir: str) -> None:
    """One trial, in a process of Ray's: a fine-tuning run in the sweep's folder."""
    import torch
    from ray import tune

    from rwkv_jobs.driver import drive

    spec = trial_spec(FinetuneSpec.model_validate(base), config)
    torch.set_num_threads(spec.cluster.cpus_per_worker)
    name = f"{Path(run_dir).name}-{tune.get_context().get_trial_id()}"
    spec = spec.model_copy(update={"name": name})
    folder = Path(run_dir) / "trials" / name
    run_folder.write_spec(folder, spec)
    result = drive(spec, folder)
    tune.report(trial_figures(result))


def trial_figures(result: dict[str, Any]) -> dict[str, Any]:
    """What the table shows of a trial."""
    mean = result["val"]["mean"]
    return {
        "dsc_strict": mean["dsc_strict"] or 0.0,
        "dsc_official": mean["dsc_official"] or 0.0,
        "hd95_vox_strict": mean["hd95_vox_strict"],
        "hd95_vox_official": mean["hd95_vox_official"],
        "macs_paper": result["macs_paper"],
        "macs_true": result["macs_true"],
        "parameters": result["parameters"],
        "run": result["run"],
        "run_id": result["run_id"],
    }


def announcer(run_dir: Path) -> Any:
    """Says a line in the sweep's journal for every trial that ends, and keeps its figures."""
    from ray.tune import Callback

    class Announcer(Callback):
        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            figures = trial.last_result
            values = ", ".join(f"{path}={value}" for path, value in trial.config.items())
            say(run_dir, f"trial {values}: dsc_strict {figures['dsc_strict']:.4f}")

        def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            say(run_dir, f"trial {trial.trial_id} failed")

    return Announcer()


def summarise(spec: TuneSpec, run_dir: Path, study: optuna.Study) -> dict[str, Any]:
    """The table of a sweep, best first: the study's completed trials, with what their folders say of them.

    A trial that went on after its driver was killed, and was run again, has two folders; one of them counts.
    """
    complete = [(trial.params, trial.value) for trial in study.get_trials(states=(TrialState.COMPLETE,))]
    rows = []
    for folder in sorted((run_dir / "trials").glob("*")):
        result = run_folder.result(folder)
        if result is None:
            continue
        fields = flatten(run_folder.read_spec(folder).model_dump(mode="json"))
        params, figures = {path: fields[path] for path in spec.space.params}, trial_figures(result)
        if (params, figures[spec.metric]) in complete:
            complete.remove((params, figures[spec.metric]))
            rows.append(params | figures)
    rows.sort(key=lambda row: (-row[spec.metric], row["run"]))
    best = study.best_trial
    return {"trials": rows, "best": {"params": best.params, spec.metric: best.value}, "study": study.study_name}


if __name__ == "__main__":
    from rwkv_jobs.entry import main

    main("tune")
