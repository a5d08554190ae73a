"""Optuna's dashboard on the studies of our sweeps, asked over HTTP."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rwkvctl.runs import folder as run_folder
from rwkvctl.sweeps import studies
from rwkvctl.sweeps.study import Study

from .conftest import sweep

PATIENCE = 300.0
SPACE = {"loss.alpha": {"float": [0.0, 1.0]}}


@pytest.fixture
def begun(home: Path) -> Callable[..., Path]:
    """Makes a sweep with two trials, of which one has ended."""

    def make(name: str, where: str | None = None) -> Path:
        spec = sweep(SPACE, 4, name=name, study_storage=where)
        folder = run_folder.create(spec, str(home / "runs"))
        study = Study(spec, folder)
        for value in (0.25, None):
            trial, _ = study.ask()  # type: ignore[misc]
            study.note(trial, run=f"{name}-{trial.number:04d}")
            if value is not None:
                study.complete(trial, [value])
        return folder

    return make


@pytest.fixture
def served() -> Iterator[Callable[[Path], str]]:
    """Starts the dashboard of a sweep as `rwkvctl ui` does; its address."""
    processes: list[subprocess.Popen[bytes]] = []

    def start(folder: Path) -> str:
        port = free_port()
        command = [sys.executable, "-P", "-m", "rwkvctl.sweeps.dashboard", str(folder), "127.0.0.1", str(port)]
        processes.append(subprocess.Popen(command, env=os.environ | {"PYTHONWARNINGS": "ignore"}))
        return f"http://127.0.0.1:{port}"

    yield start
    for process in processes:
        process.kill()
        process.wait()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def get(url: str) -> Any:
    """The JSON at an address, as soon as somebody answers there."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
                return json.load(answer)
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.1)


@pytest.mark.parametrize("kind", ["sqlite", "journal"])
def test_it_lists_the_study_and_its_trials(kind: str, begun: Any, served: Any, tmp_path: Path):
    pytest.importorskip("optuna_dashboard")
    folder = begun("seen", None if kind == "sqlite" else str(tmp_path / "sweep.log"))
    found = studies.named("seen", str(folder.parent))
    address = served(folder)
    [listed] = get(f"{address}/api/studies")["study_summaries"]
    assert (listed["study_id"], listed["study_name"]) == (found.number, "seen")
    shown = get(f"{address}/api/studies/{found.number}")
    assert [trial["state"] for trial in shown["trials"]] == ["Complete", "Running"]
    assert shown["trials"][0]["values"] == [0.25]
    assert {note["key"]: note["value"] for note in shown["trials"][0]["user_attrs"]}["run"] == "seen-0000"
    assert shown["objective_names"] == ["dsc_strict"]


def test_the_newest_sweep_with_a_study_is_shown(rwkvctl: Any, begun: Any, home: Path, monkeypatch: Any):
    storage = str(home / "runs")
    assert studies.newest(storage) is None
    for age, name in ((30, "older"), (20, "newer")):
        folder = begun(name)
        os.utime(folder / run_folder.SPEC, (time.time() - age,) * 2)
    run_folder.create(sweep(SPACE, 4, name="not-begun"), storage)
    found = studies.newest(storage)
    assert found is not None
    assert found.folder.name == "newer"
    assert studies.named("older", storage).folder.name == "older"
    done = rwkvctl("ui not-begun")
    assert (done.code, done.err) == (
        2, "error: sweep not-begun: has no study yet; it has one when its first trial has begun\n",
    )  # fmt: skip
    assert not (home / "runs" / "not-begun" / "study.db").exists()
    assert rwkvctl("ui nowhere").code == 4


def test_without_the_dashboard_there_is_a_hint(begun: Any, home: Path, monkeypatch: Any, capsys: Any):
    from importlib import util

    from rwkvctl.cli.runs import dashboard_of

    begun("seen")
    monkeypatch.setattr(util, "find_spec", lambda name: None)
    assert dashboard_of(None, str(home / "runs"), "127.0.0.1", 8080) == []
    assert capsys.readouterr().out == "the study of sweep seen has a UI of its own: pip install 'rwkvctl[dashboard]'\n"
