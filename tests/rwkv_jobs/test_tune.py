"""Sweeps: which points are tried, whatever stops them in between; and every space that is shipped, for real."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from rwkv_jobs import points, tune
from rwkv_jobs.driver import drive
from rwkvctl.base.errors import JobFailedError
from rwkvctl.cli import assemble
from rwkvctl.config.specs import load
from rwkvctl.config.specs.jobs import TuneSpec
from rwkvctl.config.specs.sweep import check_space
from rwkvctl.runs import folder as run_folder

Point = dict[str, Any]
FINITE = {"train.epochs": {"int": [1, 4], "step": 2}, "model.ccm": {"choice": [True, False]}, "seed": {"int": [1, 3]}}
ENDLESS = {"loss.alpha": {"float": [0.0, 1.0]}, "optimizer.lr": {"float": [1e-5, 1e-2], "log": True}}
MIXED = {"model.options.x": {"choice": [1, False, None, "1", 0.5, "null"]}}


def sweep(params: dict[str, Any], trials: int, **space: Any) -> TuneSpec:
    base = {**load.read_recipe("binary"), "data": {"path": "nowhere", "dataset": "polyps"}}
    return TuneSpec.model_validate(
        {"space_name": "own", "space": {"params": params, **space}, "base": base, "trials": trials, "seed": 7}
    )


Database = optuna.storages.BaseStorage


@pytest.fixture
def database() -> Database:
    """What is left of a sweep when its driver has ended."""
    return optuna.storages.InMemoryStorage()


class Study:
    """What a driver does with a study between its start and its end, without Ray."""

    def __init__(self, database: Database, spec: TuneSpec):
        self.storage = database
        self.study = optuna.create_study(
            storage=self.storage, study_name="own", direction="maximize", load_if_exists=True
        )
        points.requeue_stale(self.study, self.storage, spec.space)
        self.count = tune.trials_to_run(spec, self.study)
        self.search = tune.searcher(spec, self.study, self.storage)
        self.begun = 0

    def begin(self) -> Point:
        self.begun += 1
        return self.search.suggest(str(self.begun))

    def run(self, count: int | None = None, error: bool = False) -> list[Point]:
        """Train some trials, by default all that are lacking."""
        tried = []
        for _ in range(self.count if count is None else count):
            tried.append(self.begin())
            result = None if error else {"dsc_strict": 1 / (1 + len(tried)), "training_iteration": 1}
            self.search.on_trial_complete(str(self.begun), result, error=error)
        return tried

    def params(self, state: TrialState = TrialState.COMPLETE) -> list[Point]:
        return [trial.params for trial in self.study.get_trials(states=(state,))]


def distinct(tried: list[Point]) -> int:
    return len({json.dumps(point, sort_keys=True) for point in tried})


@pytest.mark.parametrize("params", [ENDLESS, FINITE], ids=["endless", "finite"])
@pytest.mark.parametrize("cover", [False, True])
def test_an_extended_sweep_goes_on_with_other_points(database: Database, params: dict[str, Any], cover: bool):
    if cover and params is ENDLESS:
        pytest.skip("refused")
    first = Study(database, sweep(params, 4, cover=cover)).run()
    second = Study(database, sweep(params, 8, cover=cover)).run()
    assert (len(first), len(second), distinct(first + second)) == (4, 4, 8)


@pytest.mark.parametrize("cover", [False, True])
@pytest.mark.parametrize(("params", "size"), [(FINITE, 12), (MIXED, 6)])
def test_a_finite_space_is_tried_once_and_then_ends(database: Database, params: dict[str, Any], size: int, cover: bool):
    spec = sweep(params, 40, cover=cover)
    tried = Study(database, spec).run(size // 2) + Study(database, spec).run()
    assert len(tried) == distinct(tried) == size
    assert Study(database, spec).count == 0


def test_the_same_seed_draws_the_same_points():
    a, b = (Study(optuna.storages.InMemoryStorage(), sweep(ENDLESS, 3)).run() for _ in range(2))
    assert a == b


@pytest.mark.parametrize("params", [ENDLESS, FINITE], ids=["endless", "finite"])
def test_a_trial_that_was_killed_is_tried_again_with_its_params(database: Database, params: dict[str, Any]):
    spec = sweep(params, 6)
    killed = Study(database, spec)
    done, running = killed.run(2), killed.begin()
    after = Study(database, spec)
    assert after.count == 4
    tried = after.run()
    assert tried[0] == running
    assert distinct(done + tried) == 6
    assert after.params(TrialState.WAITING) == after.params(TrialState.RUNNING) == []


def test_a_trial_that_was_killed_before_it_had_all_its_params_is_none(database: Database):
    spec = sweep(FINITE, 12)
    Study(database, spec).study.ask().suggest_int("train.epochs", 1, 3, step=2)
    after = Study(database, spec)
    assert after.count == distinct(after.run()) == 12


def test_points_that_failed_are_tried_again_by_the_next_start(database: Database):
    spec = sweep(FINITE, 12)
    failed = Study(database, spec).run(error=True)
    assert distinct(failed) == 12
    assert distinct(Study(database, spec).run()) == 12


@pytest.mark.parametrize("cover", [False, True])
def test_a_space_of_a_million_points_is_not_counted_through(database: Database, cover: bool):
    spec = sweep({"seed": {"int": [1, 1000]}, "train.epochs": {"int": [1, 1000]}}, 3, cover=cover)
    assert distinct(Study(database, spec).run()) == 3


def test_covering_leaves_nothing_in_the_queue(database: Database):
    study = Study(database, sweep(FINITE, 5, cover=True))
    assert distinct(study.run()) == 5
    assert study.params(TrialState.WAITING) == []


def test_a_sweep_says_what_failed_and_is_not_done(database: Database, tmp_path: Path):
    spec = sweep(FINITE, 5)
    study = Study(database, spec)
    study.run(3)
    study.run(2, error=True)
    with pytest.raises(JobFailedError) as caught:
        tune.finish(spec, tmp_path, study.study, [ValueError("first"), ValueError("a\nCUDA out of memory")])
    assert str(caught.value).startswith("2 of 5 trials failed; the last: CUDA out of memory. The others are listed in ")
    assert str(caught.value).endswith(f"rwkvctl tune --space own --resume {tmp_path.name}")
    study = Study(database, spec)
    study.run()
    tune.finish(spec, tmp_path, study.study, [])


def test_a_sweep_that_has_tried_every_point_says_so(database: Database, tmp_path: Path):
    spec = sweep(FINITE, 20)
    study = Study(database, spec)
    study.run()
    tune.finish(spec, tmp_path, study.study, [])
    assert "space own has 12 points and each has been tried: 12 trials, not 20" in said(tmp_path)


def said(run_dir: Path) -> str:
    return (run_dir / "journal.jsonl").read_text()


# For real -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Synapse as `data synth` makes it, prepared."""
    from rwkvctl.data.convert import synth
    from rwkvctl.data.convert.prepare import prepare

    raw, out = tmp_path_factory.mktemp("raw"), tmp_path_factory.mktemp("shards") / "synapse"
    synth.write("synapse", raw / "synapse")
    prepare("synapse", [raw / "synapse"], out, allow_partial=True)
    return out


@pytest.fixture(scope="module")
def ray() -> Iterator[None]:
    """One Ray for all sweeps of this file."""
    from rwkvctl.config.specs.parts import ClusterSpec
    from rwkvctl.launch.session import ray_session

    with ray_session(ClusterSpec(), cpus=1):
        yield


TINY = ["data.image_size=32", "train.batch_size=2", "train.epochs=1", "train.epoch_steps=1"]


def shipped(name: str, data: Path, trials: int, *assignments: str) -> TuneSpec:
    """A sweep as `rwkvctl tune --space NAME --data DATA` starts it, tiny."""
    variant = {"variant": "xt"}
    return assemble.tune_spec(name, None, str(data), variant, [*TINY, *assignments], None, trials, 1, None, "sweep")


@pytest.mark.slow
@pytest.mark.usefixtures("home")
@pytest.mark.parametrize("name", load.space_names())
def test_a_trial_of_every_shipped_space_trains_and_is_scored(name: str, scans: Path, tmp_path: Path):
    spec = shipped(name, scans, 1, "cluster.launcher=process", "tracking.register_as=")
    [first, *_] = check_space(spec)
    run_dir = run_folder.create(first, str(tmp_path))
    assert 0 <= tune.trial_figures(drive(first, run_dir))["dsc_strict"] <= 1


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("home", "ray")
def test_a_shipped_space_on_the_data_of_its_recipe(scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("rwkvctl.launch.session.ray_session", lambda cluster: nullcontext())
    run_dir = run_folder.create(spec := shipped("loss_weights", scans, 1), str(tmp_path))
    assert len(drive(spec, run_dir)["trials"]) == 1
    assert "since train.validate_every is 0; 4 of them are also test cases (none with data.split=h" in said(run_dir)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("home", "ray")
def test_a_trial_that_fails_does_not_take_the_others_with_it(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("rwkvctl.launch.session.ray_session", lambda cluster: nullcontext())
    space = tmp_path / "starts.yaml"
    space.write_text("cover: true\nparams: {model.encoder_weights: {choice: [null, nowhere]}}")
    spec = shipped(str(space), shards / "polyps", 2, "cluster.max_failures=0")
    run_dir = run_folder.create(spec, str(tmp_path))
    with pytest.raises(JobFailedError, match=r"^1 of 2 trials failed; the last: .*nowhere.*--space starts --resume"):
        drive(spec, run_dir)
    [row] = json.loads((run_dir / "artifacts" / "trials.json").read_text())["trials"]
    assert row["model.encoder_weights"] is None
