"""A run directory has one writer: the dead lose it, the living keep it, who lost it is told."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rwkvctl.base.errors import UserError
from rwkvctl.runs.journal import Journal
from rwkvctl.runs.lease import LeaseLost, RunLease

HOLDER = """
import sys, time
from rwkvctl.runs.lease import RunLease
lease = RunLease(sys.argv[1])
print("taken", flush=True)
sys.stdin.read()
lease.release() if sys.argv[2] == "release" else None
"""


@pytest.fixture
def holder(tmp_path: Path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path), "hold"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "taken\n"
    yield process
    process.kill()
    process.communicate()


def foreign(path: Path, token: str = "other") -> None:
    """Make the lease look as if another machine held it."""
    holder = {"token": token, "host": "node7", "machine": "elsewhere", "pid": 1, "started": "5"}
    path.write_text(json.dumps(holder))


def test_living_holder_keeps_it(tmp_path: Path, holder) -> None:
    with pytest.raises(UserError, match=f"process {holder.pid} on .*stop that job first"):
        RunLease(tmp_path, wait=0.3)


def test_killed_holder_loses_it_at_once(tmp_path: Path, holder) -> None:
    holder.kill()
    holder.wait()
    start = time.monotonic()
    RunLease(tmp_path).release()
    assert time.monotonic() - start < 2


def test_orphan_is_waited_for(tmp_path: Path, holder) -> None:
    """The holder ends while the next one waits."""
    import threading

    threading.Timer(0.5, holder.kill).start()
    threading.Timer(0.6, holder.wait).start()
    with RunLease(tmp_path, wait=20) as lease:
        lease.check()


def test_reused_process_id_is_not_the_holder(tmp_path: Path, holder) -> None:
    path = tmp_path / "lease.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"started": "1"}))
    RunLease(tmp_path, wait=0.5).release()


def test_silent_holder_on_another_machine_loses_it(tmp_path: Path) -> None:
    foreign(tmp_path / "lease.json")
    with RunLease(tmp_path, wait=20, stale_after=0.5) as lease:
        lease.check()


def test_beating_holder_on_another_machine_keeps_it(tmp_path: Path) -> None:
    import os
    import threading

    path = tmp_path / "lease.json"
    foreign(path)
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(0.1):
            os.utime(path)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(UserError, match="on node7"):
            RunLease(tmp_path, wait=2, stale_after=1)
    finally:
        stop.set()
        thread.join()


def test_a_job_takes_the_lease_of_a_worker_that_it_has_given_up(tmp_path: Path, monkeypatch) -> None:
    """The worker is on a node that is cut off and beats on: nobody waits for it, and it learns of it."""
    path = tmp_path / "lease.json"
    monkeypatch.setenv("RWKVCTL_JOB", "one")
    old = RunLease(tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"machine": "elsewhere"}))
    monkeypatch.setenv("RWKVCTL_JOB", "another")
    with pytest.raises(UserError, match="is being written by"):
        RunLease(tmp_path, wait=0.3)
    monkeypatch.setenv("RWKVCTL_JOB", "one")
    with RunLease(tmp_path, wait=0.3) as new:
        new.check()
        with pytest.raises(LeaseLost):
            old.check()


def test_lost_lease_stops_checkpoint_and_journal(tmp_path: Path) -> None:
    lease = RunLease(tmp_path)
    journal = Journal(tmp_path / "journal.jsonl", lease=lease)
    lease.check()
    foreign(tmp_path / "lease.json")
    with pytest.raises(LeaseLost, match="taken over by process 1 on node7"):
        lease.check()
    with pytest.raises(LeaseLost):
        journal.flush()
    time.sleep(1.1)  # between lines the lease is read once a second
    with pytest.raises(LeaseLost):
        journal.event("message", text="late")
    journal.close()
    lease.release()
    assert json.loads((tmp_path / "lease.json").read_text())["token"] == "other"


def test_same_process_may_start_over(tmp_path: Path) -> None:
    first = RunLease(tmp_path)
    second = RunLease(tmp_path, wait=0)
    second.check()
    with pytest.raises(LeaseLost):
        first.check()
    second.release()
    assert not (tmp_path / "lease.json").exists()


def test_holder_beats(tmp_path: Path) -> None:
    with RunLease(tmp_path, stale_after=0.3) as lease:
        before = lease.path.stat().st_mtime_ns
        time.sleep(0.3)
        assert lease.path.stat().st_mtime_ns > before


def test_damaged_lease_is_free(tmp_path: Path) -> None:
    (tmp_path / "lease.json").write_text("{")
    RunLease(tmp_path, wait=0).release()
