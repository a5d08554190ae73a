"""Jobs that are shown in TensorBoard and Weights & Biases beside MLflow."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from rwkv_jobs import driver
from rwkv_jobs.driver import drive
from rwkvctl.runs import folder as run_folder

from ..rwkvctl.runs.test_journal_mirrors import in_journal, in_tensorboard, in_wandb, nobody_logged_in  # noqa: F401
from .conftest import PATIENCE, Jobs
from .test_tune import HERE, shipped

DIE_WHEN_SHOWN = """
import signal, time
from pathlib import Path
from rwkv_jobs import driver, stepper
driver.FIRST_SENT_AFTER = 0.0
taken = stepper.Stepper.step
def step(self, loss_of, number, **options):
    if number == 4:
        run = Path(sys.argv[1])
        while not list(run.glob("tensorboard/events*")) or not list(run.glob("wandb/*/*.wandb")):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
    return taken(self, loss_of, number, **options)
stepper.Stepper.step = step
"""


@pytest.mark.slow
def test_a_training_that_is_killed_and_goes_on_is_shown_once(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RWKVCTL_MIRRORS", "tensorboard,wandb")
    run_dir = jobs.new("finetune", "shown")
    process = jobs.start("finetune", run_dir, DIE_WHEN_SHOWN)
    process.join(PATIENCE)
    assert process.exitcode == -signal.SIGKILL
    assert 0 < len(in_tensorboard(run_dir)) <= len(in_journal(run_dir))
    assert jobs.run("finetune", run_dir) == 0
    expected = in_journal(run_dir)
    assert {key for key, _, _ in expected} >= {"train/loss", "val/dsc_strict/mean"}
    assert in_tensorboard(run_dir) == expected
    points, config, name = in_wandb(run_dir)
    assert points == expected
    assert (config["model.name"], name[1], name[3]) == ("rwkv_unet_xt", "shown", "finetune")
    printed = capfd.readouterr()
    assert "wandb" not in printed.out + printed.err


@pytest.mark.slow
def test_the_trials_of_a_sweep_are_shown_too(shards: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RWKVCTL_MIRRORS", "tensorboard,wandb")
    monkeypatch.setattr(driver, "FIRST_SENT_AFTER", 0.0)
    spec = shipped("ccm_hidden", shards / "polyps", 2, HERE)
    run_dir = run_folder.create(spec, str(home / "runs"))
    drive(run_folder.read_spec(run_dir), run_dir)
    trials = sorted((run_dir / "trials").iterdir())
    assert len(trials) == 2
    for trial in trials:
        assert in_tensorboard(trial) == in_wandb(trial)[0] == in_journal(trial) != []
