"""The processes that make samples."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import time
from multiprocessing.connection import Client
from multiprocessing.reduction import DupFd

import pytest

from rwkvctl.data.feed.loader_processes import begin_process


def hand_over(hang_up: bool) -> None:
    """As a loader process hands a batch over: its receiver hangs up, or asks for one that is not there."""
    begin_process()
    address, _ = DupFd(os.dup(0))._id
    key = multiprocessing.current_process().authkey
    connection = Client(address, authkey=key)
    if not hang_up:
        connection.send((4711, os.getpid()))
        time.sleep(1)
    connection.close()
    Client(address, authkey=key).close()  # answered when the first was dealt with


@pytest.mark.parametrize(("hang_up", "said"), [(True, ""), (False, "KeyError: 4711")])
def test_a_receiver_that_hangs_up_is_not_worth_a_traceback_and_another_fault_is(hang_up: bool, said: str):
    code = f"from tests.rwkvctl.data.feed.test_loader_processes import hand_over; hand_over({hang_up})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0
    assert (done.stderr.strip().splitlines() or [""])[-1] == said
