"""`rwkvctl checkpoint`: what it lists, finds damaged and deletes."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest

from rwkvctl.config.specs.jobs import FinetuneSpec
from rwkvctl.runs import folder as run_folder
from rwkvctl.runs.lease import RunLease
from rwkvctl.training.checkpoint_write import save_checkpoint

from ..training.tiny_state import make_state, train


@pytest.fixture
def run(home: Path) -> Path:
    """A run with checkpoints of the steps 1 (the best), 2 and 3."""
    fields = {"name": "mine", "data": {"path": "/x"}, "optimizer": {"lr": 1}, "train": {"epochs": 3, "batch_size": 2}}
    run_dir = run_folder.create(FinetuneSpec.model_validate(fields), str(home / "runs"))
    state = make_state(0)
    for step in (1, 2, 3):
        train(state, 1)
        state.position.epoch = step
        save_checkpoint(run_dir / "checkpoints", state, best=step == 1)
    return run_dir


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def test_list(rwkvctl, run: Path):
    size = sum(path.stat().st_size for path in (run / "checkpoints" / "step-00000003").iterdir())
    latest, middle, best = rwkvctl("checkpoint list mine").out.splitlines()
    written = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00"
    assert re.fullmatch(rf"step-00000003  epoch 3  {size / 1e6:.1f} MB  {written}  latest", latest)
    assert re.fullmatch(rf"step-00000002  epoch 2  \S+ MB  {written}", middle)
    assert best.endswith("  best")
    truncate(run / "checkpoints" / "step-00000003" / "state.json")
    rows = json.loads(rwkvctl(f"checkpoint list {run} --json").out)
    assert rows[0]["damage"] == "step-00000003/state.json is not JSON"
    assert (rows[1]["step"], rows[1]["epoch"], rows[1]["pointers"], rows[2]["pointers"]) == (2, 2, [], ["best"])
    assert "damaged: step-00000003/state.json is not JSON\n" in rwkvctl("checkpoint list mine").out


def test_verify(rwkvctl, run: Path):
    done = rwkvctl("checkpoint verify mine")
    assert (done.code, done.out) == (0, "step-00000003: sound\nstep-00000002: sound\nstep-00000001: sound\n")
    truncate(run / "checkpoints" / "step-00000002" / "ema.safetensors")
    (run / "checkpoints" / "best.json").write_text("{")
    (run / "checkpoints" / "latest.json").unlink()
    done = rwkvctl("checkpoint verify mine")
    assert done.code == 1
    assert done.out.splitlines() == [
        "step-00000003: sound",
        "damaged: step-00000002/ema.safetensors does not match its hash in state.json",
        "step-00000001: sound",
        "damaged: latest.json is missing",
        "damaged: best.json does not name a checkpoint",
    ]
    found = json.loads(rwkvctl("checkpoint verify mine --json").out)
    assert found["ok"] is False
    assert found["damage"]["step-00000001"] is None


def test_gc(rwkvctl, run: Path):
    folder = run / "checkpoints"
    assert rwkvctl("checkpoint gc mine").out == f"nothing to delete in {folder}\n"
    shutil.copytree(folder / "step-00000001", folder / "step-00000000")
    shutil.copytree(folder / "step-00000001", folder / ".step-00000004.9.tmp")
    there = sorted(folder.iterdir())
    lines = rwkvctl("checkpoint gc mine --dry-run").out.splitlines()
    assert [line.split("  ")[0] for line in lines] == [
        "would delete .step-00000004.9.tmp",
        "would delete step-00000000",
    ]
    assert sorted(folder.iterdir()) == there
    found = json.loads(rwkvctl("checkpoint gc mine --json").out)
    assert (found["deleted"], found["dry_run"]) == ([".step-00000004.9.tmp", "step-00000000"], False)
    assert found["kept"] == ["step-00000003", "step-00000002", "step-00000001"]
    assert sorted(path.name for path in folder.iterdir()) == ["best.json", "latest.json", *sorted(found["kept"])]
    assert not (run / "lease.json").exists()


def test_gc_leaves_a_run_that_is_being_trained_alone(rwkvctl, run: Path, monkeypatch: pytest.MonkeyPatch):
    (run / "checkpoints" / ".step-00000004.9.tmp").mkdir()
    with RunLease(run):
        monkeypatch.setattr("rwkvctl.runs.lease._is_dead", lambda holder: False)  # this process is no other job
        done = rwkvctl("checkpoint gc mine")
        assert done.code == 2
        assert re.fullmatch(
            rf"error: run {run} is being written by process {os.getpid()} on \S+: stop that job first, or delete "
            r"lease.json if it died on another machine\n",
            done.err,
        )
        assert rwkvctl("checkpoint gc mine --dry-run").code == 0
    assert (run / "checkpoints" / ".step-00000004.9.tmp").exists()


def test_a_run_without_checkpoints(rwkvctl, run: Path):
    shutil.rmtree(run / "checkpoints")
    assert rwkvctl("checkpoint list mine").out == f"no checkpoints in {run}/checkpoints\n"
    assert rwkvctl("checkpoint verify mine").err == "error: run mine: has no checkpoint yet\n"
    assert rwkvctl("checkpoint gc mine").out == f"nothing to delete in {run}/checkpoints\n"
    assert rwkvctl("checkpoint list min").code == 4
