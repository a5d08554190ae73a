"""Which points a sweep tries, whatever stops it in between, and what its study says of them."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from rwkvctl.base.errors import UserError
from rwkvctl.config.specs.jobs import Sampler
from rwkvctl.runs import folder as run_folder
from rwkvctl.sweeps import warm_start
from rwkvctl.sweeps.study import OVER_BOUND, Study, open_storage
from rwkvctl.sweeps.table import table

from .conftest import Driver, Point, sweep

FINITE = {"train.epochs": {"int": [1, 4], "step": 2}, "model.ccm": {"choice": [True, False]}, "seed": {"int": [1, 3]}}
ENDLESS = {"loss.alpha": {"float": [0.0, 1.0]}, "optimizer.lr": {"float": [1e-5, 1e-2], "log": True}}
MIXED = {"model.options.x": {"choice": [1, False, None, "1", 0.5, "null"]}}
STEPS = {"loss.alpha": {"float": [0.1, 0.75], "step": 0.1}, "loss.beta": {"float": [0.1, 0.3], "step": 0.1}}
BRANCHES = {
    "model.ccm": {"choice": [True, False]},
    "model.ccm_hidden_rate": {"int": [1, 4], "when": {"model.ccm": True}},
    "model.num_skips": {"int": [1, 3], "when": {"model.ccm_hidden_rate": [1, 2]}},
    "seed": {"int": [1, 2]},
}
SAMPLERS: list[Sampler] = ["tpe", "random", "grid", "nsga2", "nsga3"]
TWO = [{"metric": "dsc_strict", "direction": "maximize"}, {"metric": "macs_paper", "direction": "minimize"}]


def distinct(tried: list[Point]) -> int:
    return len({json.dumps(point, sort_keys=True) for point in tried})


def goals(sampler: str) -> dict[str, Any]:
    return {"sampler": sampler} | ({"objectives": TWO} if sampler == "nsga3" else {})


@pytest.mark.parametrize("sampler", ["tpe", "random", "gp", "nsga2", "nsga3"])
def test_an_extended_sweep_of_an_endless_space_goes_on_with_other_points(database: Any, sampler: str):
    first = Driver(sweep(ENDLESS, 4, **goals(sampler)), database).run()
    second = Driver(sweep(ENDLESS, 8, **goals(sampler)), database).run()
    assert (len(first), len(second), distinct(first + second)) == (4, 4, 8)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize(
    ("params", "size"), [(FINITE, 12), (MIXED, 6), (STEPS, 21), (BRANCHES, 18)], ids=["plain", "mixed", "steps", "when"]
)
def test_a_finite_space_is_tried_once_and_then_ends(database: Any, params: dict[str, Any], size: int, sampler: str):
    spec = sweep(params, 40, **goals(sampler))
    assert spec.space.size() == size == len(list(spec.space.points()))
    tried = Driver(spec, database).run(size // 2) + Driver(spec, database).run()
    assert len(tried) == distinct(tried) == size
    assert Driver(spec, database).begin() is None


@pytest.mark.slow
def test_gaussian_processes_try_a_finite_space_once(database: Any):
    assert distinct(Driver(sweep(FINITE, 40, sampler="gp"), database).run()) == 12


def test_conditions_hold_in_every_point(database: Any):
    for point in Driver(sweep(BRANCHES, 18, sampler="random"), database).run():
        assert ("model.ccm_hidden_rate" in point) == point["model.ccm"]
        assert ("model.num_skips" in point) == (point.get("model.ccm_hidden_rate") in (1, 2))


@pytest.mark.parametrize("params", [ENDLESS, FINITE], ids=["endless", "finite"])
def test_an_interrupted_random_sweep_draws_what_it_would_have_drawn(params: dict[str, Any]):
    spec = sweep(params, 6, sampler="random")
    straight = Driver(spec, optuna.storages.InMemoryStorage()).run()
    database = optuna.storages.InMemoryStorage()
    parts = [Driver(spec, database).run(count) for count in (1, 3, 2)]
    assert [point for part in parts for point in part] == straight


@pytest.mark.parametrize("params", [ENDLESS, FINITE], ids=["endless", "finite"])
@pytest.mark.parametrize("cover", [False, True])
def test_a_trial_that_was_running_goes_on_under_its_number(database: Any, params: dict[str, Any], cover: bool):
    if cover and params is ENDLESS:
        pytest.skip("refused")
    spec = sweep(params, 6, cover=cover)
    killed = Driver(spec, database)
    done = killed.run(2)
    found = killed.begin()
    assert found is not None
    after = Driver(spec, database)
    [(trial, point)] = after.open
    assert (trial.number, point) == (2, found[1])
    tried = after.run()
    assert (len(tried), distinct(done + tried)) == (4, 6)
    assert after.count(TrialState.WAITING, TrialState.RUNNING) == 0
    assert [trial.number for trial in after.study.optuna.trials] == list(range(6))


def test_a_trial_that_was_killed_between_two_parameters_gets_the_others(database: Any):
    spec = sweep(FINITE, 12)
    Driver(spec, database).study.optuna.ask().suggest_int("train.epochs", 1, 3, step=2)
    after = Driver(spec, database)
    assert distinct(after.run()) == after.count(TrialState.COMPLETE) == 12


class Killed(Exception):
    """Stands for SIGKILL."""


@pytest.mark.parametrize("drawn", [0, 1, 2])
@pytest.mark.parametrize("number", [0, 2])
@pytest.mark.parametrize("params", [ENDLESS, FINITE], ids=["endless", "finite"])
def test_a_trial_that_was_killed_while_it_was_drawn_is_what_it_would_have_been(
    database: Any, params: dict[str, Any], number: int, drawn: int, monkeypatch: pytest.MonkeyPatch
):
    """Not what the next trial is to be."""
    spec = sweep(params, 4, sampler="random")
    straight = Driver(spec, optuna.storages.InMemoryStorage()).run()
    killed = Driver(spec, database)
    done = killed.run(number)
    plain, calls = optuna.Trial._suggest, []

    def suggest(self: optuna.Trial, name: str, distribution: Any) -> Any:
        if len(calls) == drawn:
            raise Killed
        calls.append(name)
        return plain(self, name, distribution)

    with monkeypatch.context() as patch:
        patch.setattr(optuna.Trial, "_suggest", suggest)
        with pytest.raises(Killed) if drawn < len(params) else nullcontext():
            killed.begin()
    assert done + Driver(spec, database).run() == straight


def test_points_that_failed_are_tried_again_by_the_next_start(database: Any):
    spec = sweep(FINITE, 12)
    assert distinct(Driver(spec, database).run(error=True)) == 12
    assert Driver(spec, database).run(1, error=True)
    assert distinct(Driver(spec, database).run()) == 12


@pytest.mark.parametrize("cover", [False, True])
def test_a_space_of_a_million_points_is_not_counted_through(database: Any, cover: bool):
    spec = sweep({"seed": {"int": [1, 1000]}, "train.epochs": {"int": [1, 1000]}}, 3, cover=cover)
    assert distinct(Driver(spec, database).run()) == 3


def test_nothing_waits_or_runs_in_a_finished_study(database: Any):
    driver = Driver(sweep(FINITE, 3), database)
    driver.study.optuna.enqueue_trial({"seed": 1})
    driver.study.optuna.enqueue_trial({"seed": 2})
    driver.begin()
    driver.study.end()
    assert driver.count(TrialState.WAITING, TrialState.RUNNING) == 0
    assert {trial.user_attrs["why"] for trial in driver.study.optuna.trials} == {"not needed any more"}


def test_what_is_infeasible_counts_and_what_is_over_a_bound_does_not(database: Any):
    driver = Driver(sweep(FINITE, 3), database)
    driver.study.infeasible(driver.begin()[0], "out of memory")  # type: ignore[index]
    driver.study.infeasible(driver.begin()[0], "parameters 9", outcome=OVER_BOUND, by=0.5)  # type: ignore[index]
    driver.study.failed(driver.begin()[0], "its process died")  # type: ignore[index]
    assert driver.study.lacking() == 2
    driver.run()
    found = table(driver.spec, driver.study)
    assert [(other["outcome"], other["why"]) for other in found["others"]] == [
        ("infeasible", "out of memory"), (OVER_BOUND, "parameters 9"), ("failed", "its process died"),
    ]  # fmt: skip
    assert len(found["trials"]) == 2
    assert found["best"]["dsc_strict"] == max(row["dsc_strict"] for row in found["trials"])


def test_tpe_keeps_away_from_what_was_infeasible():
    """Half of a range cannot be trained, right behind the best points. What only failed says nothing of its point."""

    def drawn_there(tell: str) -> int:
        driver, found = Driver(sweep({"loss.alpha": {"float": [0.0, 1.0]}}, 60), optuna.storages.InMemoryStorage()), 0
        for _ in range(60):
            trial, point = driver.begin()  # type: ignore[misc]
            if point["loss.alpha"] > 0.5:
                getattr(driver.study, tell)(trial, "out of memory")
                found += 1
            else:
                driver.study.complete(trial, [point["loss.alpha"]])
        return found

    assert drawn_there("infeasible") < drawn_there("failed") - 5


def test_several_objectives_leave_a_front(database: Any):
    driver = Driver(sweep(FINITE, 4, objectives=TWO), database)
    for values in ([0.5, 10.0], [0.9, 30.0], [0.4, 20.0], [0.7, 20.0]):
        driver.study.complete(driver.begin()[0], values)  # type: ignore[index]
    rows = table(driver.spec, driver.study)["trials"]
    assert [(row["dsc_strict"], row["macs_paper"], row["front"]) for row in rows] == [
        (0.9, 30.0, True), (0.7, 20.0, True), (0.5, 10.0, True), (0.4, 20.0, False),
    ]  # fmt: skip
    assert driver.study.optuna.metric_names == ["dsc_strict", "macs_paper"]


@pytest.mark.parametrize("kind", ["sqlite", "journal"])
def test_a_study_opens_in_optuna_itself(tmp_path: Path, kind: str):
    where = None if kind == "sqlite" else str(tmp_path / "sweep.log")
    spec = sweep(FINITE, 2, study_storage=where)
    study = Study(spec, tmp_path / "own") if where else Study(spec, made(tmp_path / "own"))
    trial, point = study.ask()  # type: ignore[misc]
    study.note(trial, run="own-0000", macs_paper=7)
    study.complete(trial, [0.5])
    backend = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(where)) if where else None
    found = optuna.load_study(study_name="own", storage=backend or f"sqlite:///{tmp_path / 'own' / 'study.db'}")
    assert (found.best_params, found.best_value, found.metric_names) == (point, 0.5, ["dsc_strict"])
    assert found.best_trial.user_attrs == {"run": "own-0000", "macs_paper": 7, "outcome": "complete"}


def made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_a_study_of_another_sweep_is_not_taken_over(tmp_path: Path):
    spec = sweep(FINITE, 2, study_storage=str(tmp_path / "shared.log"))
    Study(spec, tmp_path / "here" / "own")
    Study(spec, tmp_path / "here" / "own")
    with pytest.raises(UserError, match=r"--study: it has a study own of .*/here/own; give another --name"):
        Study(spec, tmp_path / "there" / "own")


def test_a_study_that_cannot_be_opened_is_one_line(tmp_path: Path):
    spec = sweep(FINITE, 2, study_storage="postgresql+psycopg://ann@127.0.0.1:9/sweeps")
    with pytest.raises(UserError, match=r"^--study postgresql\+psycopg://ann@127.0.0.1:9/sweeps: cannot be opened \("):
        Study(spec, tmp_path / "own")


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_covariances_are_adapted_over_interruptions(tmp_path: Path):
    """CMA-ES in a journal file: after its first population it draws from what it has learned, and a sweep that was
    stopped draws what it would have drawn."""
    params = {f"loss.{name}": {"float": [0.0, 1.0]} for name in ("alpha", "beta")}

    def drawn(name: str, *stops: int) -> list[Point]:
        tried: list[Point] = []
        for count in (*stops, 40):
            spec = sweep(params, 40, sampler="cmaes", study_storage=str(tmp_path / f"{name}.log"))
            study = Study(spec, tmp_path / name)
            while len(tried) < count:
                trial, point = study.ask()  # type: ignore[misc]
                study.complete(trial, [-sum((value - 0.2) ** 2 for value in point.values())])
                tried.append(point)
        return tried

    straight = drawn("straight")
    assert drawn("stopped", 3, 20) == straight
    assert distinct(straight) == 40

    def distance(points: list[Point]) -> float:
        return sum(abs(value - 0.2) for point in points for value in point.values())

    assert distance(straight[-10:]) < distance(straight[:10]) / 2


# Warm start ----------------------------------------------------------------------------------------------------------


def test_a_sweep_knows_the_trials_of_another_that_fit_its_space(tmp_path: Path, database: Any):
    other = sweep(FINITE, 6, sampler="grid", name="first")
    folder = run_folder.create(other, str(tmp_path))
    Driver(other, open_storage(other, folder), folder).run()
    spec = sweep({**FINITE, "seed": {"int": [1, 2]}}, 20, warm_start=str(folder))
    driver = Driver(spec, database)
    for _ in range(2):
        said = warm_start.take_over(spec, driver.study)
        assert said == "4 of the 6 trials of first are in this space, and known to the sampler"
    tried = driver.run()
    assert (len(tried), distinct(tried)) == (4, 4)
    assert len(table(spec, driver.study)["trials"]) == 4
    assert len(driver.study.optuna.trials) == 8


def test_a_sweep_with_other_objectives_is_no_warm_start(tmp_path: Path):
    folder = run_folder.create(sweep(FINITE, 6, name="first"), str(tmp_path))
    with pytest.raises(
        UserError, match="--warm-start first: its objectives are dsc_strict, not dsc_strict, macs_paper"
    ):
        warm_start.check(sweep(FINITE, 6, objectives=TWO, warm_start=str(folder)))
