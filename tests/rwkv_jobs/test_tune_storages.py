"""Sweeps whose study lies in PostgreSQL or in a journal file: stopped, gone on with, and opened by Optuna as it is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from rwkvctl.cli import assemble
from rwkvctl.config.specs.jobs import TuneSpec
from rwkvctl.runs import folder as run_folder
from rwkvctl.sweeps import studies

from ..postgres_server import open_postgres
from .conftest import COMMON, Jobs, events

SETTINGS = [*COMMON, "train.batch_size=2", "train.epochs=1", "train.epoch_steps=40", "cluster.launcher=process"]
PASSWORD = "hunter2-of-the-sweeps"
DIE = """
import signal as s
from rwkv_jobs import trial_loop
plain = trial_loop.Loop.follow
def follow(self, view):
    plain(self, view)
    if view.trial.number == 1 and (view.folder / "checkpoints" / "latest.json").exists():
        os.kill(os.getpid(), s.SIGKILL)
trial_loop.Loop.follow, trial_loop.LOOK_EVERY = follow, 0.001
"""


@pytest.fixture
def storage(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """What `--study` is given."""
    if request.param == "journal":
        yield str(tmp_path / "sweep.log")
        return
    with open_postgres("sweeps", PASSWORD) as port:
        monkeypatch.setenv("PGPASSWORD", PASSWORD)
        yield f"postgresql+psycopg://sweeps@127.0.0.1:{port}/sweeps"


@contextmanager
def opened(storage: str) -> Iterator[optuna.Study]:
    """As somebody opens it who knows nothing of us."""
    database = RDBStorage(storage) if "://" in storage else None
    yield optuna.load_study(study_name="sweep", storage=database or JournalStorage(JournalFileBackend(storage)))
    if database is not None:
        database.remove_session()
        database.engine.dispose()


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["postgres", "journal"], indirect=True)
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_a_sweep_is_killed_goes_on_and_is_extended(storage: str, jobs: Jobs, shards: Path, tmp_path: Path):
    space = tmp_path / "own.yaml"
    space.write_text("params:\n  model.ccm_hidden_rate: {int: [1, 4]}\n  optimizer.lr: {float: [1.0e-4, 1.0e-2]}\n")
    spec = assemble.tune_spec(
        str(space), None, str(shards / "polyps"), {"variant": "xt"}, SETTINGS, None, 2, 1, storage, "sweep"
    )
    run_dir = run_folder.create(spec, str(jobs.runs))
    killed = jobs.start("tune", run_dir, before=DIE)
    killed.join()
    assert killed.exitcode == -9, run_dir.with_suffix(".log").read_text()[-2000:]
    with opened(storage) as study:
        assert [trial.state for trial in study.trials] == [TrialState.COMPLETE, TrialState.RUNNING]
    run_folder.write_spec(run_dir, TuneSpec.model_validate(spec.model_dump(by_alias=True) | {"trials": 3}))
    again = jobs.start("tune", run_dir)
    again.join()
    assert again.exitcode == 0, run_dir.with_suffix(".log").read_text()[-2000:]

    with opened(storage) as study:
        trials, number = study.trials, study._study_id
        assert study.metric_names == ["dsc_strict"]
    assert [(trial.number, trial.state) for trial in trials] == [(n, TrialState.COMPLETE) for n in range(3)]
    rows = json.loads((run_dir / run_folder.TRIALS).read_text())["trials"]
    assert {row["run"]: row["dsc_strict"] for row in rows} == {trial.user_attrs["run"]: trial.value for trial in trials}
    assert [event["step"] > 0 for event in events(run_dir / "trials" / "sweep-0001", "plan")] == [False, True]
    assert not (run_dir / "study.db").exists()
    assert studies.named("sweep", str(jobs.runs)).number == number
    written = [path for path in run_dir.rglob("*") if path.is_file()] + [run_dir.with_suffix(".log")]
    assert not [path for path in written if PASSWORD.encode() in path.read_bytes()]
