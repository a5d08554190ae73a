"""A sweep's space as Optuna knows it, and samplers that draw no point of a finite space twice."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from rwkvctl.config.specs.space import Choice, FloatRange, IntRange, Point, SpaceSpec, key

DRAWS = 20
"""How often a sampler is asked for something that leads to a point which is still free."""


def suggest(trial: optuna.Trial, space: SpaceSpec) -> Point:
    """The point of a trial, parameter by parameter, each where its conditions hold; those that it has already stay."""
    point: Point = {}
    while (path := space.begun(point)) is not None:
        match distribution(space.params[path]):
            case optuna.distributions.CategoricalDistribution() as choice:
                point[path] = trial.suggest_categorical(path, choice.choices)
            case optuna.distributions.IntDistribution() as numbers:
                point[path] = trial.suggest_int(path, numbers.low, numbers.high, step=numbers.step, log=numbers.log)
            case optuna.distributions.FloatDistribution() as numbers:
                point[path] = trial.suggest_float(path, numbers.low, numbers.high, step=numbers.step, log=numbers.log)
    return point


def taken(study: optuna.Study, begun: int | None = None) -> set[str]:
    """Keys of the points that are done, running or queued. Those that failed are to be tried again; not by the same
    start, if `begun` says how many trials there were before it."""
    return {
        key(point_of(trial))
        for trial in study.get_trials(deepcopy=False)
        if trial.state != TrialState.FAIL or (begun is not None and trial.number >= begun)
    }


def untried(study: optuna.Study, space: SpaceSpec, begun: int | None = None) -> Iterator[Point]:
    """The points of a finite space that are free, in order."""
    known = taken(study, begun)
    return (point for point in space.points() if key(point) not in known)


def point_of(trial: FrozenTrial) -> Point:
    """The parameters of a trial, those that are only queued for it included."""
    return {**trial.system_attrs.get("fixed_params", {}), **trial.params}


def distribution(values: Choice | IntRange | FloatRange) -> BaseDistribution:
    """The values of a parameter as Optuna knows them."""
    match values:
        case Choice():
            return optuna.distributions.CategoricalDistribution(values.choice)
        case IntRange():
            return optuna.distributions.IntDistribution(
                values.int[0], values.values()[-1], step=values.step, log=values.log
            )
        case FloatRange():
            all_values = values.values()
            high = values.float[1] if all_values is None else all_values[-1]
            return optuna.distributions.FloatDistribution(values.float[0], high, log=values.log, step=values.step)


class Once(optuna.samplers.BaseSampler):
    """Another sampler over a finite space, kept from points which a trial of the study has. What it draws together is
    drawn again if it is taken; then, and for what it draws one by one, only values that lead to a free point are."""

    def __init__(self, sampler: optuna.samplers.BaseSampler, space: SpaceSpec, begun: int):
        self.sampler, self.space, self.begun = sampler, space, begun

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self.sampler.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        if not search_space:
            return {}
        known = taken(study, self.begun)
        for _ in range(DRAWS):
            drawn = self.sampler.sample_relative(study, trial, search_space)
            if self.space.begun(drawn) is None and key(drawn) not in known:
                return drawn
        return {}

    def sample_independent(self, study: optuna.Study, trial: FrozenTrial, name: str, distribution: Any) -> Any:
        free = self.free_values(study, trial, name)
        assert free, "a sweep starts no more trials than its space has points"
        for _ in range(DRAWS):
            value = self.sampler.sample_independent(study, trial, name, distribution)
            if any(key(value) == key(other) for other in free):
                return value
        return free[0]

    def free_values(self, study: optuna.Study, trial: FrozenTrial, name: str) -> list[Any]:
        """Values of a parameter that, after those which the trial already has, still lead to an untried point."""
        known = [json.loads(point) for point in taken(study, self.begun) - {key(point_of(trial))}]
        beside = [
            point for point in known if all(p in point and key(point[p]) == key(v) for p, v in trial.params.items())
        ]
        used = Counter(key(point[name]) for point in beside if name in point)
        free = []
        for value in self.space.params[name].values() or []:
            size = self.space.size({**trial.params, name: value})
            assert size is not None, "a finite space"
            if used[key(value)] < size:
                free.append(value)
        return free

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self.sampler.before_trial(study, trial)

    def after_trial(self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Any) -> None:
        self.sampler.after_trial(study, trial, state, values)

    def reseed_rng(self) -> None:
        self.sampler.reseed_rng()
