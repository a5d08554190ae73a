"""The whole path as a user types it, with Ray, MLflow and two workers; and a sweep."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import yaml
from PIL import Image

from rwkvctl.data.convert import synth
from rwkvctl.data.convert.prepare import prepare

from .conftest import COMMON, Jobs, mlflow_history, mlflow_runs, wait_for, wait_for_step

TINY = [word for assignment in COMMON for word in ("--set", assignment)]


def rwkvctl(*words: str | Path | int, code: int = 0) -> Any:
    """Run a command and return what it prints with --json."""
    command = [sys.executable, "-m", "rwkvctl.cli.app", *map(str, words), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1800)
    assert done.returncode == code, done.stderr[-3000:]
    return json.loads(done.stdout) if code == 0 else done.stderr


README = re.findall(r"`rwkvctl ([^`]*)`", (Path(__file__).parents[2] / "README.md").read_text())


def from_readme(begin: str, *more: str | Path, code: int = 0, **instead: str) -> Any:
    """The command of README that begins so, with more options, and names of this test in the place of its own."""
    (line,) = (line for line in README if line.startswith(begin))
    return rwkvctl(*(instead.get(word, word) for word in shlex.split(line)), *more, code=code)


@pytest.mark.slow
@pytest.mark.ray
def test_from_a_download_to_a_mask_by_the_commands_of_readme(
    jobs: Jobs, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    synth.write("clinicdb", "CVC-ClinicDB", n=16, size=40)
    from_readme("data prepare", "--allow-partial")
    Path("shards/cifar").symlink_to(shards / "textures")
    small = [*TINY, "--set", "train.batch_size=8", "--set"]
    pretrained = from_readme("pretrain --variant", *small, "train.epochs=2", "--name", "encoder")
    assert (pretrained["run"], pretrained["model_uri"]) == ("encoder", "models:/rwkv_unet_enc_t/1")
    in_process = ["--workers", 1, "--set", "cluster.launcher=process"]
    tuned = from_readme("finetune clinicdb --variant", *small, "train.epochs=1", *in_process, RUN="encoder")
    assert tuned["run"].startswith("finetune-clinicdb-")
    scores = from_readme("evaluate", RUN=tuned["run"])
    assert scores["cases"] == 2
    assert "not promoted" in from_readme("model promote", code=2)  # its gate asks for 0.9
    from_readme("model promote", **{"dsc_strict>=0.9": "dsc_strict>=0"})
    Image.fromarray(np.full((50, 70, 3), 90, np.uint8)).save("image.png")
    made = from_readme("predict models:")
    assert [Path(mask).absolute() for mask in made["written"]] == [tmp_path / "masks" / "image.png"]
    with Image.open(made["written"][0]) as mask:
        assert mask.size == (70, 50)
    [shown] = from_readme("model show")
    assert (shown["aliases"], shown["run_id"]) == (["champion"], tuned["run_id"])
    assert shown["metrics"]["test/dsc_strict/mean"] == scores["mean"]["dsc_strict"]
    assert {run["run"]: run["state"] for run in rwkvctl("runs")} == dict.fromkeys(
        ["encoder", tuned["run"], scores["run"]], "done"
    )
    assert {run.info.status for run in mlflow_runs(jobs.home)} == {"FINISHED"}


@pytest.mark.slow
@pytest.mark.ray
def test_a_sweep_that_is_killed_runs_only_what_it_lacks(jobs: Jobs, shards: Path, children: list[Any]):
    words = [
        "tune", "--space", "ccm_hidden", "--variant", "xt", "--data", shards / "polyps", "--trials", 2, *TINY,
        "--concurrency", 1, "--name", "sweep", "--set", "train.batch_size=4", "--set", "train.epochs=1",
    ]  # fmt: skip
    command = [sys.executable, "-m", "rwkvctl.cli.app", *map(str, words)]
    run_dir, log = jobs.runs / "sweep", (jobs.home / "log").open("w")
    children.append(first := subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True))
    wait_for(lambda: len(trials(run_dir)) == 2, "second trial", 1800)
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


@pytest.mark.slow
def test_a_study_goes_from_nothing_to_its_table(jobs: Jobs, tmp_path: Path):
    """The second start finds what the first has done, and trains the row that failed there."""
    synth.write("clinicdb", tmp_path / "raw", n=16, size=40)
    prepare("clinicdb", [tmp_path / "raw"], tmp_path / "shards", allow_partial=True)
    rows = [{"label": f"rate {rate}", "set": {"model.ccm_hidden_rate": rate}} for rate in (1, 2)]
    study: dict[str, Any] = {"title": "Mine", "datasets": ["clinicdb"], "num_classes": 1, "image_size": 32}
    study["set"] = {"model.name": "rwkv_unet_xt", "data.workers": 0}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(study | {"rows": rows}))
    words = ["study", "run", tmp_path / "mine.yaml", "--data", f"clinicdb={tmp_path / 'shards'}", "--epochs", 1]
    words += ["--set", "train.batch_size=4", "--set", "train.validate_every=1"]
    command = [sys.executable, "-P", "-m", "rwkvctl.cli.app", *map(str, words)]
    for row in ["--row", "rate 1"], []:
        done = subprocess.run([*command, *row], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        trained, evaluated, then = done.stdout.splitlines()
        assert "trained in" in trained
        assert "evaluated in" in evaluated
        assert then == f"next: rwkvctl study report {tmp_path / 'mine.yaml'}"
    found = rwkvctl("study", "report", tmp_path / "mine.yaml", "--out", tmp_path / "table")["rows"]
    assert [row["scores"]["clinicdb"]["runs"] for row in found] == [1, 1]
    assert "train.epochs 1, not" in found[0]["scores"]["clinicdb"]["differs"][0]
    assert (tmp_path / "table" / "mine.md").exists()
    [parent] = [run for run in mlflow_runs(jobs.home) if run.info.run_name == "study mine"]
    children = [run for run in mlflow_runs(jobs.home) if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert sorted(run.data.tags["mlflow.source.name"] for run in children) == [
        "rwkvctl evaluate", "rwkvctl evaluate", "rwkvctl finetune", "rwkvctl finetune",
    ]  # fmt: skip
