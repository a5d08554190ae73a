"""Servers that tests start in a session of their own."""

from __future__ import annotations

import os
import signal
import subprocess
from typing import Any


def end_group(process: subprocess.Popen[Any]) -> None:
    """End a process that leads a group, with all of the group; killed where it does not end within a minute."""
    for number in (signal.SIGINT, signal.SIGKILL):
        if process.poll() is None:
            os.killpg(process.pid, number)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                continue
