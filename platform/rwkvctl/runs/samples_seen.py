"""Which samples a training's optimiser was given, step by step: a record that is kept where somebody asks for one.

The variable RWKVCTL_SAMPLES_SEEN names a folder. Every worker writes a file there each time that it is started,
`rank-R.BEGAN.PID.jsonl` (BEGAN in ns since 1970), a line for each step before it takes it, from the batch itself:

    {"t": 1738300000.1, "step": 7, "ids": ["polyps/003", "polyps/017"]}

A step that was taken is in the files of all workers, since none can take it without the gradients of the others.
A file `pace` in the folder makes workers wait so many seconds before each step.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

VARIABLE = "RWKVCTL_SAMPLES_SEEN"
PACE = "pace"


class SamplesSeen:
    """One worker's record; does nothing unless the variable is set."""

    def __init__(self, rank: int):
        folder = os.environ.get(VARIABLE)
        self.folder = Path(folder) if folder else None
        if self.folder is not None:
            self.path = self.folder / f"rank-{rank}.{time.time_ns()}.{os.getpid()}.jsonl"
            self.path.touch()

    def note(self, step: int, ids: list[str]) -> None:
        """Called before each step of the optimiser, counted from 1, with the ids of the batch that it is given."""
        if self.folder is None:
            return
        time.sleep(pace(self.folder))
        with self.path.open("ab", buffering=0) as file:
            file.write(json.dumps({"t": time.time(), "step": step, "ids": ids}).encode() + b"\n")


@dataclass(frozen=True)
class Step:
    """One line."""

    at: float
    number: int
    ids: tuple[str, ...]


@dataclass(frozen=True)
class Life:
    """What one worker has noted between its start and its end."""

    rank: int
    began: float
    """Seconds since 1970."""
    pid: int
    steps: list[Step]


def pace(folder: Path) -> float:
    """Seconds to wait before each step."""
    try:
        return float((folder / PACE).read_text())
    except (OSError, ValueError):
        return 0.0


def lives(folder: Path) -> list[Life]:
    """All lives of all workers, in the order of their starts."""
    found = []
    for path in folder.glob("rank-*.jsonl"):
        rank, began, pid, _ = path.name.removeprefix("rank-").split(".")
        found.append(Life(int(rank), int(began) / 1e9, int(pid), steps(path)))
    return sorted(found, key=lambda life: life.began)


def steps(path: Path) -> list[Step]:
    """The whole lines of a file: a worker that is killed may leave half of one."""
    *lines, _ = path.read_bytes().split(b"\n")
    entries = [json.loads(line) for line in lines]
    return [Step(entry["t"], entry["step"], tuple(entry["ids"])) for entry in entries]
