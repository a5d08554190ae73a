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


def test_a_rung_is_believed_while_it_would_have_lost_a_fifth_of_the_front():
    """Of nine trials five are the front at the end."""
    end = [[float(i), float(-i)] for i in range(5)] + [[10.0 + i, 10.0] for i in range(4)]
    assert not pareto.is_right(list(zip(end[1:], end[1:], strict=True))), "eight are too few"
    for lost in range(6):
        there = [[20.0 + i, 20.0] if i < lost else at_end for i, at_end in enumerate(end)]
        assert pareto.is_right(list(zip(there, end, strict=True))) == (lost <= 1)


def test_a_sweep_stops_what_is_dominated_at_a_rung_and_only_there(database: Any):
    """Rungs of 300 epochs are 23, 67 and 200; the third trial is worse than the first in both."""
    driver = Driver(sweep(ENDLESS, 20, objectives=TWO, pruner="asha"), database)

    def at(trial: Any, epoch: int, *values: float) -> bool:
        return pruning.falls_behind(driver.spec, trial, epoch, 300, list(values))

    def finish(count: int) -> None:
        """Trials of which no other dominates one, there and at the end."""
        for _ in range(count):
            trial = driver.begin()[0]  # type: ignore[index]
            assert not at(trial, 23, 0.75, 20.0)
            assert not at(trial, 300, 0.9, 20.0)
            driver.study.complete(trial, [0.9, 20.0])

    finish(8)
    good, cheap, bad, late = (driver.begin()[0] for _ in range(4))  # type: ignore[index]
    assert not at(good, 22, 0.6, 10.0)
    assert not at(good, 23, 0.8, 10.0)
    assert not at(cheap, 24, 0.5, 5.0)
    assert not at(late, 24, 0.7, 20.0), "eight have come to their end, who may all be wrong"
    finish(1)
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


@pytest.mark.parametrize(
    ("name", "seeds", "saves", "loses", "worst"),
    [
        ("powers", 20, 0.4, 0.001, 0.98),
        ("zdt1", 6, 0.35, 0.005, 0.98),
        ("zdt3", 6, 0.35, 0.005, 0.98),
        ("curves", 6, 0.35, 0.005, 0.98),
        ("crossing", 10, 0.15, 0.02, 0.94),
    ],
)
def test_what_is_saved_and_what_it_costs(
    name: str, seeds: int, saves: float, loses: float, worst: float, benchmark: ModuleType
):
    """Parts of the epochs and of the hypervolume; where curves cross, less is saved, and the front is kept."""
    found = np.array([benchmark.saved_and_kept(name, 100, seed) for seed in range(seeds)])
    saved, kept = found.mean(axis=0)
    assert saved >= saves
    assert kept >= 1 - loses
    assert found[:, 1].min() >= worst
