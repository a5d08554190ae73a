"""Sweeps of which nothing is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from rwkvctl.config.specs import load
from rwkvctl.config.specs.jobs import TuneSpec
from rwkvctl.sweeps.study import Study

Point = dict[str, Any]


def sweep(params: dict[str, Any], trials: int = 4, cover: bool = False, **fields: Any) -> TuneSpec:
    base = load.merge(load.read_recipe("binary"), {"data": {"path": "nowhere", "dataset": "polyps"}})
    own = {"space_name": "own", "space": {"params": params, "cover": cover}, "base": base, "trials": trials, "seed": 7}
    return TuneSpec.model_validate(own | fields)


class Driver:
    """What a sweep's driver does with its study, without training anything."""

    def __init__(self, spec: TuneSpec, storage: optuna.storages.BaseStorage, run_dir: Path = Path("/nowhere/own")):
        self.study = Study(spec, run_dir, storage)
        self.spec = spec
        self.open = [(trial, self.study.go_on(trial)) for trial in self.study.interrupted()]

    def begin(self) -> tuple[Any, Point] | None:
        return self.open.pop(0) if self.open else self.study.ask()

    def run(self, count: int | None = None, error: bool = False) -> list[Point]:
        """Train some trials, by default all that are lacking."""
        tried: list[Point] = []
        for _ in range(self.study.lacking() if count is None else count):
            found = self.begin()
            if found is None:
                break
            trial, point = found
            if error:
                self.study.failed(trial, "why")
            else:
                self.study.complete(trial, [1 / (2 + trial.number + i) for i in range(len(self.spec.goals))])
            tried.append(point)
        return tried

    def count(self, *states: TrialState) -> int:
        return len(self.study.optuna.get_trials(states=states))


@pytest.fixture
def database() -> optuna.storages.BaseStorage:
    """What is left of a sweep when its driver has ended."""
    return optuna.storages.InMemoryStorage()
