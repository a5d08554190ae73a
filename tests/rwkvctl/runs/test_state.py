"""What a run is doing, from what lies in its folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rwkvctl.base import identity
from rwkvctl.base.exit_codes import INTERRUPTED, STOPPED
from rwkvctl.config.specs.jobs import EvaluateSpec
from rwkvctl.runs import folder as run_folder
from rwkvctl.runs import job_record, state, stop
from rwkvctl.runs.journal import Journal

ELSEWHERE = {"host": "node7", "machine": "another", "pid": 7, "started": "1"}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return run_folder.create(EvaluateSpec(model="m", name="mine"), str(tmp_path))


def dead() -> dict[str, Any]:
    """A process of this machine that has ended."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    found = identity.of_process(child.pid)
    child.communicate()
    return found


def begun(run: Path, process: dict[str, Any] | None = None) -> None:
    job_record.note(run, process=process or identity.of_process())
    with Journal(run / "journal.jsonl") as journal:
        journal.event("start")


def end(run: Path, status: str, **more: str) -> None:
    with Journal(run / "journal.jsonl") as journal:
        journal.event("end", status=status, **more)


def cluster(run: Path) -> None:
    job_record.submitted(run, address="http://head:8265", submission_id="mine-1")


CASES: dict[str, tuple[Callable[[Path], Any], str, str]] = {
    "a folder alone": (lambda run: None, "interrupted", "never began"),
    "on a cluster's queue": (cluster, "queued", ""),
    "starting": (lambda run: job_record.submitted(run, parent=identity.of_process()), "queued", "starting"),
    "its starter gone": (lambda run: job_record.submitted(run, parent=dead()), "interrupted", "ended before the run"),
    "at work": (begun, "running", ""),
    "its process gone": (lambda run: begun(run, dead()), "interrupted", " is gone"),
    "at work elsewhere": (lambda run: begun(run, ELSEWHERE), "running", ""),
    "done": (lambda run: (begun(run, dead()), end(run, "FINISHED")), "done", ""),
    "failed": (lambda run: (begun(run, dead()), end(run, "FAILED", reason="no disk")), "failed", "no disk"),
    "stopped": (lambda run: (begun(run, dead()), end(run, "KILLED", reason="stopped")), "stopped", ""),
    "interrupted": (lambda run: (begun(run, dead()), end(run, "KILLED")), "interrupted", ""),
    "ending": (lambda run: (begun(run), end(run, "KILLED", reason="stopped")), "running", "ending"),
    "going on": (lambda run: (begun(run), end(run, "FAILED"), begun(run)), "running", ""),
    "refused": (lambda run: (cluster(run), job_record.ended(run, 2, "no such split")), "failed", "no such split"),
    "submitted again": (lambda run: (begun(run), end(run, "FAILED"), cluster(run)), "queued", ""),
}


@pytest.mark.parametrize(("prepare", "expected", "reason"), CASES.values(), ids=CASES)
def test_state(run: Path, prepare: Callable[[Path], Any], expected: str, reason: str):
    prepare(run)
    found = state.of(run)
    assert (found.state, reason in found.reason, bool(found.reason)) == (expected, True, bool(reason))
    assert found.ended == (expected not in ("queued", "running"))
    assert expected == "running" or found.where == ("http://head:8265" if found.submission_id else "here")


def test_a_silent_run_elsewhere_is_told(run: Path):
    begun(run, ELSEWHERE)
    (run / "lease.json").write_text("{}")
    os.utime(run / "lease.json", (0, 0))
    assert state.of(run).reason.startswith("no sign of life for ")


def test_the_newest_figures_are_found_from_the_end(run: Path):
    begun(run)
    with Journal(run / "journal.jsonl") as journal:
        journal.event("plan", epochs=4, steps_per_epoch=10, step=0)
        journal.event("message", text='{"event": "end"} is not an entry')
        for step in range(1, 26):
            journal.metrics({"train/loss": 1 / step}, step)
    found = state.of(run)
    assert (found.step, found.total, found.metric, found.value) == (25, 40, "train/loss", 1 / 25)
    with Journal(run / "journal.jsonl") as journal:
        journal.event("validation", epoch=2, step=20, dsc=0.75)
    with (run / "journal.jsonl").open("a") as file:
        file.write('{"t": 1, "kind": "metr')
    found = state.of(run)
    assert (found.metric, found.value, found.state) == ("val/dsc", 0.75, "running")


def test_an_unreadable_run_hides_no_other(run: Path):
    (run / "spec.yaml").write_text("job: [")
    assert (state.of(run).state, state.of(run).job[:10]) == ("failed", "unreadable")


def test_a_record_is_that_of_its_process(run: Path, monkeypatch: pytest.MonkeyPatch):
    """Another process that was refused, because the run is at work, changes nothing."""
    cluster(run)
    monkeypatch.setenv(job_record.SUBMISSION, "mine-1")
    job_record.begun(run)
    assert job_record.read(run)["address"] == "http://head:8265"
    code = f"from rwkvctl.runs import job_record; job_record.ended({str(run)!r}, 2, 'refused')"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert "exit_code" not in job_record.read(run)
    monkeypatch.delenv(job_record.SUBMISSION)
    job_record.begun(run)  # started by hand
    assert "address" not in job_record.read(run)
    job_record.ended(run, 0, "")
    assert state.of(run).state == "done"


def test_a_request_is_read_whole_or_as_a_request_all_the_same(run: Path):
    assert stop.asked(run) is None
    stop.ask(run, now=True, code=INTERRUPTED)
    assert stop.asked(run) == (True, INTERRUPTED)
    for damaged in ("", "[]", json.dumps({"code": 0})):
        (run / "stop.json").write_text(damaged)
        assert stop.asked(run) == (False, STOPPED)
    stop.clear(run)
    stop.clear(run)
    assert stop.asked(run) is None
