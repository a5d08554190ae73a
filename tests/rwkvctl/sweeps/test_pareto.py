"""The rule by which trials of several objectives are stopped, and that sweeps follow it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from rwkvctl.sweeps import pareto, pruning

from .conftest import Driver, sweep

BENCHMARK = Path(__file__).parents[3] / "benchmarks" / "bench_pareto_pruning.py"
ENDLESS = {"loss.alpha": {"float": [0.0, 1.0]}}
TWO = [{"metric": "dsc_strict", "direction": "maximize"}, {"metric": "macs_paper", "direction": "minimize"}]


@pytest.mark.parametrize(
    ("last", "epochs"), [(27, [2, 6, 18]), (300, [23, 67, 200]), (5, [1, 2, 4]), (3, [1, 2]), (2, [1]), (1, [])]
)
def test_rungs(last: int, epochs: list[int]):
    assert pareto.rungs(last) == epochs


@pytest.mark.parametrize("objectives", [1, 2, 3])
def test_what_nobody_dominates_goes_on_and_what_all_dominate_does_not(objectives: int):
    points = np.random.default_rng(objectives).random((60, objectives)).tolist()
    on_front = set(pareto.front(points))
    assert on_front
    for index, own in enumerate(points):
        others = points[:index] + points[index + 1 :]
        if index in on_front:
            assert not pareto.is_stopped(own, others)
        assert pareto.is_stopped([value + 1 for value in own], others)


def test_with_one_objective_the_best_third_go_on():
    ranks = [[float(rank)] for rank in range(30)]
    going_on = [own for own in ranks if not pareto.is_stopped(own, [other for other in ranks if other != own])]
    assert going_on == ranks[:10]


def test_more_dominators_never_save_a_trial():
    rng = np.random.default_rng(0)
    for _ in range(200):
        others, own = rng.random((20, 2)), rng.random(2)
        if pareto.is_stopped(own.tolist(), others.tolist()):
            better = np.minimum(others, own - 1e-9)
            assert pareto.is_stopped(own.tolist(), better.tolist())


def test_equals_do_not_stop_one_another():
    assert not pareto.is_stopped([1.0, 1.0], [[1.0, 1.0]] * 50)
    assert not pareto.is_stopped([1.0, 1.0], [])


def test_a_sweep_stops_what_is_dominated_at_a_rung_and_only_there(database: Any):
    """Rungs of 300 epochs are 23, 67 and 200; the third trial is worse than the first in both."""
    driver = Driver(sweep(ENDLESS, 4, objectives=TWO, pruner="asha"), database)
    trials = [driver.begin()[0] for _ in range(3)]  # type: ignore[index]
    good, cheap, bad = trials

    def at(trial: Any, epoch: int, *values: float) -> bool:
        return pruning.falls_behind(driver.spec, trial, epoch, 300, list(values))

    assert not at(good, 22, 0.6, 10.0)
    assert not at(good, 23, 0.8, 10.0)
    assert not at(cheap, 24, 0.5, 5.0)
    assert not at(bad, 20, 0.1, 20.0)
    assert at(bad, 25, 0.7, 20.0)
    assert not at(bad, 25, 0.7, 20.0)  # told once
    assert not at(bad, 26, 0.1, 20.0)


def test_one_objective_is_left_to_optuna(database: Any):
    driver = Driver(sweep(ENDLESS, 8, pruner="median"), database)
    stopped = []
    for number in range(8):
        trial, _ = driver.begin()  # type: ignore[misc]
        stopped.append(pruning.falls_behind(driver.spec, trial, 1, 300, [1.0 - number / 10]))
        assert not pruning.falls_behind(driver.spec, trial, 1, 300, [0.0])
        if stopped[-1]:
            driver.study.pruned(trial, "fell behind at epoch 1")
        else:
            driver.study.complete(trial, [0.5])
    assert stopped == [False] * 5 + [True] * 3
    assert driver.study.lacking() == 0


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_pareto_pruning", BENCHMARK)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_pareto_pruning"] = module
    spec.loader.exec_module(module)
    return module


def test_it_saves_forty_percent_of_the_epochs_for_two_percent_of_the_hypervolume(benchmark: ModuleType):
    saved, ratios = [], []
    for seed in range(20):
        cost, errors = benchmark.problem(100, seed)
        spent, whole = benchmark.pruned(cost, errors)
        saved.append(1 - spent / (100 * benchmark.EPOCHS))
        ratios.append(benchmark.hypervolume(cost, errors, whole) / benchmark.hypervolume(cost, errors, range(100)))
    assert np.mean(saved) >= 0.4
    assert min(ratios) >= 0.98
