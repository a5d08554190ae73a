"""Who is who among the processes of a job on this machine."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from psutil import Process

JOB, NURSERY = "-m rwkv_jobs.", "rwkvctl.launch.nursery"
GENERATIONS = ("drivers", "nurseries", "workers", None, "loaders")
"""Each the parent of the next; the one without a name is a worker's fork server."""


@dataclass
class Cast:
    """The living processes of a job by what they do."""

    everyone: list[Process] = field(default_factory=list)
    drivers: list[Process] = field(default_factory=list)
    nurseries: list[Process] = field(default_factory=list)
    workers: list[Process] = field(default_factory=list)
    loaders: list[Process] = field(default_factory=list)


def cast(variable: str, value: str) -> Cast:
    """Of all processes that were started with a variable in their environment, and of their children."""
    import psutil

    found = Cast()
    for process in marked(variable, value):
        with contextlib.suppress(psutil.Error):
            words = words_of(process)
            ancestors = [words_of(each) for each in process.parents()]
            found.everyone.append(process)
            if (role := role_of(words, ancestors)) is not None:
                getattr(found, role).append(process)
    return found


def role_of(words: str, ancestors: list[str]) -> str | None:
    """The list of `Cast` that a process belongs to, by its command and those of its ancestors, the nearest first.

    A fork has its parent's command. The nursery may be a fork of the driver, the workers are forks of the nursery,
    their fork servers forks of them, and the loaders those of the fork servers.
    """
    if NURSERY not in words and JOB not in words:
        return None
    above = 0
    while above < len(ancestors) and (NURSERY in ancestors[above] or JOB in ancestors[above]):
        above += 1
    return (*GENERATIONS, None)[min(above, len(GENERATIONS))]


def words_of(process: Process) -> str:
    """The command that a process was started with, or what it calls itself."""
    return " ".join(process.cmdline()) or str(process.name())


def marked(variable: str, value: str) -> list[Process]:
    """Processes with this variable, and their children: some overwrite their environment with their name."""
    import psutil

    found: dict[int, Process] = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # somebody else's, or ended meanwhile
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(variable) == value:
                for each in (process, *process.children(recursive=True)):
                    if each.status() != psutil.STATUS_ZOMBIE:
                        found[each.pid] = each
    return list(found.values())


def described(process: Process) -> str:
    """`4711 (raylet ...)`."""
    import psutil

    with contextlib.suppress(psutil.Error):
        return f"{process.pid} ({' '.join(process.cmdline())[:80]})"
    return str(process.pid)


def kill(process: Process) -> None:
    import psutil

    with contextlib.suppress(psutil.Error):
        process.kill()
