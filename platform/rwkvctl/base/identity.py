"""Which process this is, so that another one can tell whether it still lives."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def of_process(pid: int | None = None) -> dict[str, Any]:
    """Host, machine, process id and start of a process of this machine, by default of this one."""
    pid = os.getpid() if pid is None else pid
    return {"host": socket.gethostname(), "machine": machine(), "pid": pid, "started": start_time(pid)}


def machine() -> str:
    """What two processes share that can see each other's process ids: a boot of a kernel and a pid namespace."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}:{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return socket.gethostname()


def is_local(process: Mapping[str, Any]) -> bool:
    """Whether it runs, or ran, on this machine."""
    return process.get("machine") == machine()


def lives(process: Mapping[str, Any]) -> bool | None:
    """Whether a process is still there; None where that cannot be seen from this machine."""
    if not is_local(process):
        return None
    return start_time(process["pid"]) == process["started"] is not None


def start_time(pid: int) -> str | None:
    """When a living process began, in the kernel's ticks: tells a process from a later one with the same id."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return _start_time_without_proc(pid)
    return None if state in "ZX" else fields[18]


def _start_time_without_proc(pid: int) -> str | None:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "alive"
