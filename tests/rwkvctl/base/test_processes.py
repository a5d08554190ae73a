"""Processes that are run for a command, and that none of them outlives it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PATIENCE = 300.0
COMMAND = """
import sys
from rwkvctl.base.processes import run_group
child = "import os, subprocess as s; s.Popen(['sleep', '600']); print(os.getpid(), flush=True); s.run(['sleep', '600'])"
sys.exit(run_group([sys.executable, "-c", child], [sys.executable, "-c", child]))
"""


def groups(leaders: list[int]) -> list[int]:
    """The living processes of some groups."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, group = path.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if state not in "ZX" and int(group) in leaders:
            found.append(int(path.parent.name))
    return found


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 130), (signal.SIGKILL, -signal.SIGKILL)], ids=["SIGTERM", "SIGKILL"]
)
def test_nothing_outlives_the_process_that_runs_it(number: signal.Signals, code: int):
    """Two commands, each with children of its own."""
    with subprocess.Popen([sys.executable, "-c", COMMAND], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        leaders = [int(process.stdout.readline()) for _ in range(2)]
        deadline = time.monotonic() + PATIENCE
        while len(groups(leaders)) < 6 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert len(groups(leaders)) == 6
        os.kill(process.pid, number)
        assert process.wait(PATIENCE) == code
        while groups(leaders) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert groups(leaders) == []


def test_what_runs_beside_ends_with_the_first():
    code = """
import sys
from rwkvctl.base.processes import run_group
sys.exit(run_group([sys.executable, "-c", "raise SystemExit(7)"], ["sleep", "600"]))
"""
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=PATIENCE).returncode == 7
