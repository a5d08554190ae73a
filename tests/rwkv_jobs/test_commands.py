"""The whole path as a user types it, with Ray, MLflow and two workers; and a sweep."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from PIL import Image

from .conftest import COMMON, Jobs, mlflow_history, mlflow_runs, wait_for, wait_for_step

TINY = [word for assignment in COMMON for word in ("--set", assignment)]


def rwkvctl(*words: str | Path, code: int = 0) -> Any:
    """Run a command and return what it prints with --json."""
    command = [sys.executable, "-m", "rwkvctl.cli.app", *map(str, words), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == code, done.stderr[-3000:]
    return json.loads(done.stdout) if code == 0 else done.stderr


@pytest.mark.slow
@pytest.mark.usefixtures("one_ray")
def test_from_shards_to_a_mask_by_the_models_alias(jobs: Jobs, shards: Path, tmp_path: Path):
    pretrained = rwkvctl(
        "pretrain", "--variant", "t", "--data", shards / "textures", "--workers", 2, *TINY,
        "--set", "train.batch_size=8", "--set", "train.epochs=2", "--name", "encoder",
    )  # fmt: skip
    assert (pretrained["run"], pretrained["model_uri"]) == ("encoder", "models:/rwkv_unet_enc_t/1")
    tuned = rwkvctl(
        "finetune", "--variant", "t", "--data", shards / "polyps", "--encoder", "models:/rwkv_unet_enc_t/1", *TINY,
        "--set", "train.batch_size=4", "--set", "train.epochs=1", "--set", "cluster.launcher=process",
    )  # fmt: skip
    assert tuned["run"].startswith("finetune-polyps-")
    scores = rwkvctl("evaluate", tuned["run"], "--split", "test")
    assert scores["cases"] == 2
    rwkvctl("model", "promote", "rwkv_unet_polyps", 1, "--alias", "champion", "--gate", "dsc_strict>=0")
    assert "not promoted" in rwkvctl(
        "model", "promote", "rwkv_unet_polyps", 1, "--alias", "best", "--gate", "dsc_strict>1", code=2
    )
    image = tmp_path / "x.png"
    Image.fromarray(np.full((50, 70, 3), 90, np.uint8)).save(image)
    made = rwkvctl("predict", "models:/rwkv_unet_polyps@champion", image, "--out", tmp_path / "masks")
    assert made["written"] == [str(tmp_path / "masks" / "x.png")]
    with Image.open(made["written"][0]) as mask:
        assert mask.size == (70, 50)
    [shown] = rwkvctl("model", "show", "rwkv_unet_polyps")
    assert (shown["aliases"], shown["run_id"]) == (["champion"], tuned["run_id"])
    assert shown["metrics"]["test/dsc_strict/mean"] == scores["mean"]["dsc_strict"]
    assert {run["run"]: run["state"] for run in rwkvctl("runs")} == dict.fromkeys(
        ["encoder", tuned["run"], scores["run"]], "finished"
    )
    assert {run.info.status for run in mlflow_runs(jobs.home)} == {"FINISHED"}


@pytest.mark.slow
@pytest.mark.usefixtures("one_ray")
def test_a_sweep_that_is_killed_runs_only_what_it_lacks(jobs: Jobs, shards: Path, children: list[Any]):
    words = [
        "tune", "--space", "ccm_hidden", "--variant", "t", "--data", shards / "polyps", "--trials", 2, *TINY,
        "--concurrency", 1, "--name", "sweep", "--set", "train.batch_size=4", "--set", "train.epochs=1",
    ]  # fmt: skip
    command = [sys.executable, "-m", "rwkvctl.cli.app", *map(str, words)]
    run_dir, log = jobs.runs / "sweep", (jobs.home / "log").open("w")
    children.append(first := subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True))
    wait_for(lambda: len(trials(run_dir)) == 2, "second trial", 280)
    wait_for_step(trials(run_dir)[-1], 1)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    log.close()
    done = rwkvctl(*words, "--resume", "sweep")
    assert sorted(row["model.ccm_hidden_rate"] for row in done["trials"]) == [1, 2]
    assert done["best"]["dsc_strict"] == max(row["dsc_strict"] for row in done["trials"])
    assert done["trials"][0]["macs_paper"] != done["trials"][1]["macs_paper"]
    study = optuna.load_study(study_name="sweep", storage=f"sqlite:///{run_dir / 'study.db'}")
    complete = [trial for trial in study.trials if trial.state == optuna.trial.TrialState.COMPLETE]
    assert sorted(trial.params["model.ccm_hidden_rate"] for trial in complete) == [1, 2]
    tracked(jobs, done)


def trials(run_dir: Path) -> list[Path]:
    folders = (run_dir / "trials").glob("*/journal.jsonl")
    return [path.parent for path in sorted(folders, key=lambda path: path.stat().st_ctime)]


def tracked(jobs: Jobs, done: dict[str, Any]) -> None:
    """The trials are child runs of one parent, each with its own metrics."""
    found = {run.info.run_id: run for run in mlflow_runs(jobs.home)}
    parent = found[done["run_id"]]
    assert parent.info.status == "FINISHED"
    for row in done["trials"]:
        child = found[row["run_id"]]
        assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert child.info.status == "FINISHED"
        assert child.data.params["model.ccm_hidden_rate"] == str(row["model.ccm_hidden_rate"])
        assert any(key == "best_val/dsc_strict/mean" for key, _, _ in mlflow_history(jobs.home, child))
