"""A sweep: Ray Tune runs the trials, Optuna chooses them, its study in a database is the truth.

python -m rwkv_jobs.tune RUN_FOLDER
"""

from __future__ import annotations

import itertools
import logging
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState

from rwkv_jobs import finetune
from rwkvctl.base.errors import JobFailedError, UserError
from rwkvctl.config.specs.jobs import Choice, FinetuneSpec, FloatRange, IntRange, SpaceSpec, TuneSpec
from rwkvctl.config.specs.load import build, merge, nest
from rwkvctl.runs import folder as run_folder
from rwkvctl.runs.journal import say

optuna.logging.set_verbosity(optuna.logging.WARNING)


def check(spec: TuneSpec, run_dir: Path) -> None:
    """Whether the model that is varied can be trained, and the space fits it."""
    finetune.check(spec.base, run_dir)
    check_space(spec)


def run(spec: TuneSpec, run_dir: Path) -> dict[str, Any]:
    """Run the trials that the study still lacks, and hand back its table."""
    storage = optuna.storages.RDBStorage(spec.study_storage or f"sqlite:///{run_dir / 'study.db'}")
    study = optuna.create_study(storage=storage, study_name=run_dir.name, direction="maximize", load_if_exists=True)
    requeue_stale(study, storage)
    if spec.space.cover:
        enqueue_missing(study, grid(spec.space))
    missing = spec.trials - len(study.get_trials(states=(TrialState.COMPLETE,)))
    if missing > 0:
        run_trials(spec, run_dir, storage, missing)
    return summarise(spec, run_dir, study)


def check_space(spec: TuneSpec) -> None:
    """Every end of the space must make a valid spec, before a trial is started."""
    for path, values in spec.space.params.items():
        for value in ends(values):
            with_values(spec.base, {path: value})
    if spec.space.cover and any(isinstance(values, FloatRange) for values in spec.space.params.values()):
        raise UserError(f"space {spec.space_name}: cover is for finite spaces; a float range has no end of values")
    if (spec.base.cluster.workers or 1) > 1:
        raise UserError("cluster.workers: a trial runs on one worker; leave it out and set --concurrency")


def ends(values: Choice | IntRange | FloatRange) -> list[Any]:
    """Values that stand for all: the choices, or the two ends of a range."""
    if isinstance(values, Choice):
        return values.choice
    return list(values.int if isinstance(values, IntRange) else values.float)


def requeue_stale(study: optuna.Study, storage: optuna.storages.BaseStorage) -> None:
    """Trials that a killed driver left running wait again, with their parameters and ahead of those never begun."""
    study_id = storage.get_study_id_from_name(study.study_name)
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        trial_id = storage.get_trial_id_from_study_id_trial_number(study_id, trial.number)
        storage.set_trial_state_values(trial_id, TrialState.WAITING)


def enqueue_missing(study: optuna.Study, points: list[dict[str, Any]]) -> None:
    """Queue the points that are neither done nor queued; one whose trial failed is tried again."""
    done = [trial.params for trial in study.get_trials(states=(TrialState.COMPLETE,))]
    waiting = study.get_trials(states=(TrialState.WAITING,))
    queued = [trial.system_attrs.get("fixed_params", trial.params) for trial in waiting]
    for point in points:
        if point not in done and point not in queued:
            study.enqueue_trial(point)


def grid(space: SpaceSpec) -> list[dict[str, Any]]:
    """Every combination of a finite space."""
    axes = [
        values.choice if isinstance(values, Choice) else range(values.int[0], values.int[1] + 1, values.step)
        for values in space.params.values()
        if isinstance(values, Choice | IntRange)
    ]
    return [dict(zip(space.params, point, strict=True)) for point in itertools.product(*axes)]


def suggest(trial: Any, space: SpaceSpec) -> None:
    """Ask Optuna for a value of every parameter."""
    for path, values in space.params.items():
        match values:
            case Choice():
                trial.suggest_categorical(path, values.choice)
            case IntRange():
                trial.suggest_int(path, *values.int, step=values.step)
            case FloatRange():
                trial.suggest_float(path, *values.float, log=values.log)


def with_values(base: FinetuneSpec, values: dict[str, Any]) -> FinetuneSpec:
    """The fine-tuning spec of a trial."""
    fields = base.model_dump(mode="json", by_alias=True)
    for path, value in values.items():
        fields = merge(fields, nest(path, value))
    shown = ", ".join(f"{path}={value}" for path, value in values.items())
    return build(FinetuneSpec, fields, f"trial {shown}")


def run_trials(spec: TuneSpec, run_dir: Path, storage: optuna.storages.BaseStorage, count: int) -> None:
    """Ray Tune over `count` trials; a trial whose process dies is tried again from its checkpoint."""
    from ray import tune
    from ray.tune.search.optuna import OptunaSearch

    from rwkvctl.launch.workers import ray_session

    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    search = OptunaSearch(
        space=partial(suggest, space=spec.space),
        metric=spec.metric,
        mode="max",
        sampler=optuna.samplers.TPESampler(seed=spec.seed),
        study_name=run_dir.name,
        storage=storage,
    )
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
    if len(results.errors) == len(results):
        raise JobFailedError(f"all {len(results)} trials failed; the last: {results.errors[-1]}")


def resources(spec: TuneSpec) -> dict[str, float]:
    """What one trial holds."""
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

    spec = with_values(FinetuneSpec.model_validate(base), config)
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
        fields = run_folder.flatten(run_folder.read_spec(folder).model_dump(mode="json"))
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
