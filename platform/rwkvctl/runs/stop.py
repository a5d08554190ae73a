"""A request that a run ends: a small file in its folder, which the run looks for wherever its workers are."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import NamedTuple

from rwkvctl.base.exit_codes import INTERRUPTED, STOPPED
from rwkvctl.base.files import write_json
from rwkvctl.runs import mirror

STOP = "stop.json"
PATIENCE = 60.0
"""Seconds that a training may take to write a checkpoint and end, before it is ended without one."""


class Request(NamedTuple):
    """What was asked for. `now`: without another checkpoint. `code`: STOPPED, or INTERRUPTED after a signal."""

    now: bool
    code: int


class Stopped(KeyboardInterrupt):
    """The run ends before its last step, in order, and can be resumed. `code` is its exit code."""

    def __init__(self, code: int):
        super().__init__()
        self.code = code


def ask(run_dir: str | os.PathLike[str], *, now: bool = False, code: int = STOPPED) -> None:
    """Ask a run to end; a request that is there is replaced."""
    write_json(Path(run_dir) / STOP, {"now": now, "code": code})
    mirror.send(Path(run_dir), STOP)


def asked(run_dir: str | os.PathLike[str]) -> Request | None:
    """The request that lies in a run's folder; one that cannot be read is a request all the same."""
    try:
        content = json.loads((Path(run_dir) / STOP).read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return Request(False, STOPPED)
    code = content.get("code") if isinstance(content, dict) else STOPPED
    now = isinstance(content, dict) and bool(content.get("now"))
    return Request(now, INTERRUPTED if code == INTERRUPTED else STOPPED)


def clear(run_dir: str | os.PathLike[str]) -> None:
    """Called when a run has ended and before it goes on: a request is answered once."""
    mirror.remove(Path(run_dir), STOP)
