"""Stop a run, wherever it is: it is asked, in its folder, and ended from outside where it does not answer."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from rwkvctl.base import identity
from rwkvctl.base.errors import TransientError, UserError
from rwkvctl.launch import observe
from rwkvctl.launch.job_server import JobServer, Unreachable
from rwkvctl.runs import folder as run_folder
from rwkvctl.runs import job_record, state, stop
from rwkvctl.runs.state import RunState

FORCE_AFTER = stop.PATIENCE + 20.0
"""Seconds after the request until a run that has not ended is ended from outside."""
KILL_AFTER = 30.0
"""Seconds after that until its process is killed, or the attempt given up."""
POLL = 0.5


def stop_run(folder: Path, *, now: bool, say: Callable[[str], None]) -> RunState:
    """Stop a run and return when it has ended. `now`: without another checkpoint.

    Raises:
        UserError: it is not running.
        TransientError: it did not end, or nobody here can reach it.
    """
    found = observe.one(folder)
    if found.ended:
        raise UserError(f"run {found.run}: is not running ({found.state}); there is nothing to stop")
    stop.ask(folder, now=now)
    if now or found.state == state.QUEUED or unseen(folder, found):
        end_from_outside(folder, found, signal.SIGTERM)
    else:
        say(f"run {found.run}: asked to write a checkpoint and stop")
    ended = until_ended(folder, FORCE_AFTER)
    if ended is None and end_from_outside(folder, found, signal.SIGTERM):
        say(f"run {found.run}: has not reacted in {FORCE_AFTER:.0f} s and is ended")
        ended = until_ended(folder, KILL_AFTER)
    if ended is None and end_from_outside(folder, found, signal.SIGKILL):
        ended = until_ended(folder, KILL_AFTER)
    if ended is None:
        raise TransientError(f"run {found.run}: has not ended; it stops as soon as it sees {folder / stop.STOP}")
    stop.clear(folder)
    return ended


def unseen(folder: Path, found: RunState) -> bool:
    """Whether a run on a cluster keeps its folder where it is not seen from here: its job server must tell it."""
    return found.submission_id is not None and not (folder / run_folder.JOURNAL).exists()


def until_ended(folder: Path, seconds: float) -> RunState | None:
    """The state of a run that has ended; None if it has not in so many seconds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = observe.one(folder)
        if found.ended:
            return found
        time.sleep(POLL)
    return None


def end_from_outside(folder: Path, found: RunState, number: signal.Signals) -> bool:
    """Tell the cluster's job server, or signal the process on this machine; whether there was somebody to tell."""
    if found.address is not None and found.submission_id is not None:
        try:
            JobServer(found.address).stop(found.submission_id)
        except Unreachable:
            return False
        return True
    record: dict[str, Any] = job_record.read(folder)
    process = record.get("process") or record.get("parent")
    if process is None or not identity.lives(process):
        return False
    with suppress(ProcessLookupError):
        os.kill(process["pid"], number)
    return True
