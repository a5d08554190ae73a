"""Workers are forked from a process that has imported what they need, and none outlives who asked for it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rwkvctl.base.identity import start_time
from rwkvctl.launch.nursery import Nurse

PATIENCE = 300.0


@pytest.fixture
def nurse() -> Iterator[Nurse]:
    nurse = Nurse(["json"])
    yield nurse
    nurse.close()


def heard(nurse: Nurse, key: str) -> dict[str, object]:
    """The next message with that key."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        for message in nurse.messages(1.0):
            if key in message:
                return message
    raise AssertionError(key)


def ended(pid: int) -> bool:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if start_time(pid) is None:
            return True
        time.sleep(0.02)
    return False


def test_a_worker_says_what_became_of_it(nurse: Nurse, tmp_path: Path):
    nurse.start("0", "os:getenv", {"key": "COLOUR"}, {"COLOUR": "blue"}, str(tmp_path / "log"))
    pid = heard(nurse, "pid")["pid"]
    assert heard(nurse, "exit") == {"key": "0", "exit": 0, "outcome": "blue"}
    assert ended(int(str(pid)))


def test_a_worker_that_is_killed_or_fails(nurse: Nurse, tmp_path: Path):
    nurse.start("0", "signal:pause", {}, {}, str(tmp_path / "log"))
    heard(nurse, "pid")
    nurse.signal("0", signal.SIGKILL)
    assert heard(nurse, "exit") == {"key": "0", "exit": -signal.SIGKILL, "outcome": None}
    nurse.start("1", "json:loads", {"s": "{"}, {}, str(tmp_path / "log"))
    assert heard(nurse, "exit") == {"key": "1", "exit": 1, "outcome": None}
    assert "JSONDecodeError" in (tmp_path / "log").read_text()


def test_workers_end_with_the_connection_and_with_the_nursery(tmp_path: Path):
    nurse = Nurse(["json"])
    second = Nurse([], nurse.address)
    pids = {}
    for name, client in {"first": nurse, "second": second}.items():
        client.start(name, "signal:pause", {}, {}, str(tmp_path / name))
        pids[name] = int(str(heard(client, "pid")["pid"]))
    second.close()
    assert ended(pids["second"])
    assert start_time(pids["first"]) is not None
    assert nurse.process is not None
    os.kill(nurse.process.pid, signal.SIGKILL)
    assert ended(pids["first"]), "workers die with a nursery that was killed"
    nurse.close()
