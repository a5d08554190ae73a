"""What a worker is doing, in a few bytes that others can read while it does it.

A worker marks where it is; a thread of it shows that it is alive. Whoever watches can tell a rank that stands still
(stopped, swapped out, stuck in its data) from those that wait for it.
"""

from __future__ import annotations

import mmap
import struct
import threading
import time
from dataclasses import dataclass
from pathlib import Path

FORMAT = struct.Struct("<ddqq16s")
ALIVE_EVERY = 1.0
"""Seconds between two signs of life of a process whose main thread is busy."""


@dataclass(frozen=True)
class Beat:
    """What a worker has shown last; ages in seconds."""

    alive_age: float
    mark_age: float
    marks: int
    step: int
    phase: str


class Heart:
    """Writes the beats of this process into a file of its own.

    Times are of the machine's monotonic clock, which all of its processes share.
    """

    def __init__(self, path: Path):
        path.write_bytes(bytes(FORMAT.size))
        with path.open("r+b") as file:
            self.memory = mmap.mmap(file.fileno(), FORMAT.size)
        self.alive = self.marked = time.monotonic()
        self.marks, self.step, self.phase = 0, -1, "start"
        self.write()
        threading.Thread(target=self.show_life, name="heartbeat", daemon=True).start()

    def mark(self, phase: str, step: int | None) -> None:
        self.alive = self.marked = time.monotonic()
        self.marks, self.phase = self.marks + 1, phase
        self.step = self.step if step is None else step
        self.write()

    def show_life(self) -> None:
        while True:
            time.sleep(ALIVE_EVERY)
            self.alive = time.monotonic()
            self.write()

    def write(self) -> None:
        self.memory[:] = FORMAT.pack(self.alive, self.marked, self.marks, self.step, self.phase.encode()[:16])


_heart: Heart | None = None


def begin(path: Path) -> None:
    """Let this process show what it is doing in the file `path`."""
    global _heart
    _heart = Heart(path)


def mark(phase: str, step: int | None = None) -> None:
    """Say what this worker is about to do ("data", "step", "evaluation", ...); free where nobody watches.

    Args:
        step: steps of the optimiser that are done, where they have changed.
    """
    if _heart is not None:
        _heart.mark(phase, step)


def read(path: Path) -> Beat | None:
    """The last beat; None before the first."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    if len(content) != FORMAT.size or not any(content):
        return None
    alive, marked, marks, step, phase = FORMAT.unpack(content)
    now = time.monotonic()
    return Beat(now - alive, now - marked, marks, step, phase.rstrip(b"\0").decode())
