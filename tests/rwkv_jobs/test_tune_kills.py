"""kill -9 of a sweep's driver, one moment after the other: no trial is lost, none is doubled."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from rwkvctl.base.exit_codes import STOPPED
from rwkvctl.cli import assemble
from rwkvctl.runs import folder as run_folder
from rwkvctl.runs import stop

from .conftest import COMMON, Jobs, events, mlflow_runs, wait_for_step

TRIALS = 3
SETTINGS = [*COMMON, "train.batch_size=2", "train.epochs=1", "cluster.launcher=process"]
STRIKE = """
import signal as s
from rwkv_jobs import trial_loop
from rwkvctl.sweeps import study
import optuna
def die(): os.kill(os.getpid(), s.SIGKILL)
def strike(owner, name, count, after):
    plain, calls = getattr(owner, name), []
    def struck(*args, **more):
        calls.append(name)
        if not after and len(calls) == count: die()
        found = plain(*args, **more)
        if after and len(calls) == count: die()
        return found
    setattr(owner, name, struck)
"""
MOMENTS = {  # each of another course of the sweep that goes on
    "between two parameters": "strike(optuna.Trial, 'suggest_int', 2, True)",
    "in the training": """
plain = trial_loop.Loop.follow
def follow(self, view):
    plain(self, view)
    if view.trial.number == 1 and (view.folder / "checkpoints" / "latest.json").exists(): die()
trial_loop.Loop.follow, trial_loop.LOOK_EVERY = follow, 0.001
""",
    "trained, and not told": "strike(trial_loop.Loop, 'tell', 2, False)",
    "told, and not announced": "strike(trial_loop.Loop, 'say_ended', 2, False)",
    "all are told": "strike(study.Study, 'end', 1, False)",
}


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_sweep_whose_driver_is_killed(moment: str, jobs: Jobs, shards: Path, tmp_path: Path):
    space = tmp_path / "own.yaml"
    space.write_text("params:\n  model.ccm_hidden_rate: {int: [1, 4]}\n  seed: {int: [1, 9]}\n")
    steps = f"train.epoch_steps={40 if moment == 'in the training' else 4}"
    own = [*SETTINGS, steps]
    spec = assemble.tune_spec(
        str(space), None, str(shards / "polyps"), {"variant": "xt"}, own, None, TRIALS, 1, None, "sweep"
    )
    run_dir = run_folder.create(spec, str(jobs.runs))
    killed = jobs.start("tune", run_dir, before=STRIKE + MOMENTS[moment])
    killed.join()
    assert killed.exitcode == -9, run_dir.with_suffix(".log").read_text()[-2000:]
    again = jobs.start("tune", run_dir)
    again.join()
    assert again.exitcode == 0, run_dir.with_suffix(".log").read_text()[-2000:]

    trials = optuna.load_study(study_name="sweep", storage=f"sqlite:///{run_dir / 'study.db'}").trials
    assert [trial.number for trial in trials] == list(range(TRIALS))
    assert {trial.state for trial in trials} == {TrialState.COMPLETE}
    assert len({json.dumps(trial.params, sort_keys=True) for trial in trials}) == TRIALS
    names = [f"sweep-{number:04d}" for number in range(TRIALS)]
    assert sorted(path.name for path in (run_dir / "trials").iterdir()) == names
    table = json.loads((run_dir / run_folder.TRIALS).read_text())["trials"]
    assert sorted(row["run"] for row in table) == names
    runs = [run for run in mlflow_runs(jobs.home) if "mlflow.parentRunId" in run.data.tags]
    assert Counter(run.info.status for run in runs) == {"FINISHED": TRIALS}
    assert {row["run_id"] for row in table} == {run.info.run_id for run in runs}
    if moment == "in the training":
        assert [event["step"] > 0 for event in events(run_dir / "trials" / names[1], "plan")] == [False, True]


@pytest.mark.slow
def test_the_trials_of_a_sweep_that_is_stopped_write_a_checkpoint(jobs: Jobs, shards: Path):
    own = [*SETTINGS, "train.epoch_steps=400", "train.checkpoint_steps=1000"]
    spec = assemble.tune_spec(
        "ccm_hidden", None, str(shards / "polyps"), {"variant": "xt"}, own, None, 1, 1, None, "sweep"
    )
    run_dir = run_folder.create(spec, str(jobs.runs))
    trial = run_dir / "trials" / "sweep-0000"
    stopped = jobs.start("tune", run_dir)
    wait_for_step(trial, 1)
    stop.ask(run_dir)
    stopped.join()
    assert stopped.exitcode == STOPPED
    again = jobs.start("tune", run_dir)
    again.join()
    assert again.exitcode == 0
    assert [event["step"] > 0 for event in events(trial, "plan")] == [False, True]
