"""Workers are forked from a process that has imported what they need, and none outlives who asked for it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rwkvctl.base.identity import start_time
from rwkvctl.launch.agent import Agent
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


def test_a_twin_has_what_its_process_has_imported_and_ends_with_the_block(tmp_path: Path):
    script = """
import colorsys, os, sys
from pathlib import Path
from rwkvctl.launch.nursery import Nurse, twin, twin_address
imported = lambda: "colorsys" in sys.modules
with twin():
    nurse = Nurse([], twin_address())
    nurse.start("0", "os:getppid", {}, {}, None)
    nurse.start("1", "__main__:imported", {}, {}, None)
    ends = []
    while len(ends) < 2:
        ends += [m for m in nurse.messages(1.0) if "exit" in m]
    print(sorted((m["key"], m["outcome"]) for m in ends), os.getpid())
print(twin_address())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    answers, nobody = done.stdout.splitlines()
    (_, nursery), (_, imported) = eval(answers.rpartition(" ")[0])
    assert imported is True
    assert nursery != int(answers.rpartition(" ")[2])
    assert ended(nursery)
    assert nobody == "None"


def test_the_loader_processes_of_a_worker_are_forks_of_it_and_end_with_it(tmp_path: Path):
    script = """
import colorsys, multiprocessing, os, sys
from rwkvctl.launch.nursery import Nurse, twin, twin_address

def loader():
    return "colorsys" in sys.modules, os.getppid(), os.getpid()

def worker():
    pool = multiprocessing.get_context("forkserver").Pool(1)
    print(*pool.apply(loader), os.getpid(), flush=True)
    os.kill(os.getpid(), 9)

with twin():
    nurse = Nurse([], twin_address())
    nurse.start("0", "__main__:worker", {}, {}, None)
    while not any("exit" in message for message in nurse.messages(1.0)):
        pass
"""
    (tmp_path / "script.py").write_text(script)  # a file, which loader processes would otherwise import again
    done = subprocess.run([sys.executable, tmp_path / "script.py"], capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    imported, server, loader, worker = done.stdout.split()
    assert imported == "True"
    assert len({server, loader, worker}) == 3
    assert ended(int(loader))
    assert ended(int(server))


def test_the_death_of_a_nursery_is_that_of_its_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "patient.py").write_text("import signal\ndef wait(beat): signal.pause()\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *filter(None, sys.path)]))
    agent = Agent(["json"])
    try:
        agent.start("patient:wait", [{"rank": 0, "arguments": {}, "environment": {}}])
        assert agent.nurse.process is not None
        deadline = time.monotonic() + PATIENCE
        while agent.poll()[0].pid is None and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(agent.nurse.process.pid, signal.SIGKILL)
        while agent.poll()[0].exit is None and time.monotonic() < deadline:
            time.sleep(0.02)
        assert agent.poll()[0].exit == -signal.SIGKILL
        agent.signal(signal.SIGTERM)  # nobody is there, and nothing is raised
    finally:
        agent.stop(0.0)


def test_an_agent_tells_when_its_nursery_is_killed_whenever_that_is(tmp_path: Path):
    """Before the agent has connected, before it starts workers, and while the nursery starts them."""
    dead = tmp_path / "nursery"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(dead))  # what a killed nursery leaves: a socket at which nobody listens
    before = Agent(["json"], str(dead))
    connected = Agent(["json"])
    assert connected.nurse.process is not None
    connected.nurse.connect()
    connected.nurse.process.kill()
    connected.nurse.process.wait()
    running = Agent(["json"])
    assert running.nurse.process is not None
    running.nurse.connect()
    running.nurse.process.send_signal(signal.SIGSTOP)  # it does not come to it
    share = [{"rank": rank, "arguments": {}, "environment": {}} for rank in range(2)]
    for agent in (before, connected, running):
        agent.start("time:sleep", share)
    running.nurse.process.kill()
    running.nurse.process.wait()
    for agent in (before, connected, running):
        assert [(state.rank, state.exit) for state in agent.poll()] == [(0, -signal.SIGKILL), (1, -signal.SIGKILL)]
        agent.stop(0.0)
        assert not agent.folder.exists()


def test_an_agent_starts_other_workers_in_the_place_of_its_own(tmp_path: Path):
    agent = Agent(["json"])
    worker = {"rank": 0, "arguments": {}, "environment": {}}
    try:
        agent.start("rwkvctl.base.processes:available_cpus", [worker])  # takes no `beat`: ends with an error
        while agent.poll()[0].exit is None:
            time.sleep(0.02)
        assert "TypeError" in agent.poll()[0].log
        assert agent.clear("127.0.0.1")
        agent.start("rwkvctl.base.processes:available_cpus", [worker | {"rank": 1}])
        assert [state.rank for state in agent.poll()] == [1]
        agent.nurse.connect().shutdown(socket.SHUT_RDWR)
        assert agent.clear("127.0.0.1") is None
    finally:
        agent.stop(0.0)
