"""Which point of its space a sweep tries next: Optuna's choice, but nothing twice where the points can be counted."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections import Counter
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from rwkvctl.config.specs.space import Choice, FloatRange, IntRange, SpaceSpec, product

Point = dict[str, Any]
Axes = dict[str, list[Any]]
"""All values of every parameter of a finite space."""
DRAWS = 20
"""How often Optuna is asked for a value that leads to a point which is still free."""


def requeue_stale(study: optuna.Study, storage: optuna.storages.BaseStorage, space: SpaceSpec) -> None:
    """Trials that a killed driver left running wait again, with their parameters and ahead of those never begun.

    One that was killed before it had all of its parameters has not begun: it counts as failed.
    """
    study_id = storage.get_study_id_from_name(study.study_name)
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        trial_id = storage.get_trial_id_from_study_id_trial_number(study_id, trial.number)
        begun = trial.params.keys() == space.params.keys()
        storage.set_trial_state_values(trial_id, TrialState.WAITING if begun else TrialState.FAIL)


def taken(study: optuna.Study, begun: int | None = None) -> set[str]:
    """Keys of the points that are done, running or queued. Those that failed are to be tried again; not by the same
    start, if `begun` says how many trials there were before it."""
    return {
        key(point_of(trial))
        for trial in study.get_trials(deepcopy=False)
        if trial.state != TrialState.FAIL or (begun is not None and trial.number >= begun)
    }


def untried(study: optuna.Study, axes: Axes, count: int) -> list[Point]:
    """The first `count` points of a finite space that are free."""
    known = taken(study)
    return list(itertools.islice((point for point in product(axes) if key(point) not in known), count))


def sampler(seed: int, study: optuna.Study, axes: Axes | None) -> optuna.samplers.BaseSampler:
    """Draws points in an order that depends on the seed and on how many trials the study has, so that a sweep that is
    continued or extended does not draw again what it began with. `axes` are those of a finite space."""
    begun = len(study.get_trials(deepcopy=False))
    own = int.from_bytes(hashlib.sha256(f"{seed} {begun}".encode()).digest()[:4], "big")
    return optuna.samplers.TPESampler(seed=own) if axes is None else Once(own, axes, begun)


class Once(optuna.samplers.BaseSampler):
    """TPE over a finite space, field by field, that draws no point which a trial of the study has."""

    def __init__(self, seed: int, axes: Axes, begun: int):
        self.tpe = optuna.samplers.TPESampler(seed=seed, multivariate=False)
        self.axes, self.begun = axes, begun

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, Any]:
        return {}

    def sample_relative(self, study: optuna.Study, trial: FrozenTrial, search_space: Any) -> dict[str, Any]:
        return {}

    def sample_independent(self, study: optuna.Study, trial: FrozenTrial, param_name: str, distribution: Any) -> Any:
        free = self.free_values(study, trial, param_name)
        assert free, "a sweep starts no more trials than its space has points"
        for _ in range(DRAWS):
            value = self.tpe.sample_independent(study, trial, param_name, distribution)
            if any(key(value) == key(other) for other in free):
                return value
        return free[0]

    def free_values(self, study: optuna.Study, trial: FrozenTrial, name: str) -> list[Any]:
        """Values of a parameter that, after those which the trial already has, still lead to an untried point."""
        behind = math.prod(len(axis) for path, axis in self.axes.items() if path not in trial.params and path != name)
        known = [json.loads(point) for point in taken(study, self.begun) - {key(point_of(trial))}]
        beside = [
            point for point in known if all(key(point[path]) == key(value) for path, value in trial.params.items())
        ]
        used = Counter(key(point[name]) for point in beside)
        return [value for value in self.axes[name] if used[key(value)] < behind]


def point_of(trial: FrozenTrial) -> Point:
    """The parameters of a trial, those that are only queued for it included."""
    return {**trial.system_attrs.get("fixed_params", {}), **trial.params}


def key(value: Any) -> str:
    """A value or a point as text that can be looked up."""
    return json.dumps(value, sort_keys=True)


def distributions(space: SpaceSpec) -> dict[str, optuna.distributions.BaseDistribution]:
    """A space as Optuna knows it."""
    return {path: distribution(values) for path, values in space.params.items()}


def distribution(values: Choice | IntRange | FloatRange) -> optuna.distributions.BaseDistribution:
    match values:
        case Choice():
            return optuna.distributions.CategoricalDistribution(values.choice)
        case IntRange():
            return optuna.distributions.IntDistribution(values.int[0], values.values()[-1], step=values.step)
        case FloatRange():
            return optuna.distributions.FloatDistribution(*values.float, log=values.log)
