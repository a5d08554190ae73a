"""How each kind of fault is done to a training."""

from __future__ import annotations

import contextlib
import random
import resource
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rwkvctl.launch.chaos.training import Training, rwkvctl
from rwkvctl.runs.folder import JOURNAL
from rwkvctl.training.checkpoint_folder import checkpoints, damage_of

if TYPE_CHECKING:
    from psutil import Process

POLL = 0.1
PATIENCE = 600.0
"""Seconds until a training that does not do what it is waited for is given up: a busy machine is slow, not broken."""
SMALLEST_FILE = 64 * 1024
"""Bytes that a file may have on a disk that is full: a checkpoint does not fit."""
LOCKED = (2.0, 12.0)
"""Seconds for which the tracking database is locked."""


SINGULAR = {"nurseries": "nursery"}


class GivenUp(Exception):
    """The training did not get as far as it had to within `PATIENCE`, or it has come to its end."""


def wait_for(training: Training, condition: Callable[[], bool], what: str) -> None:
    """Raises GivenUp; as soon as the last start has ended, too, since nothing will come then."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if training.code() is not None:
            raise GivenUp(f"the job ended before there was {what}")
        if time.monotonic() > deadline:
            raise GivenUp(f"there was no {what} in {PATIENCE:.0f} s")
        time.sleep(POLL)


def one_of(training: Training, role: str, rng: random.Random) -> Process:
    """A living process of that role, as soon as there is one."""
    found: list[Process] = []

    def look() -> bool:
        found[:] = getattr(training.cast(), role)
        return bool(found)

    wait_for(training, look, f"one of its {role}")
    return rng.choice(sorted(found, key=lambda process: process.pid))


def send(training: Training, role: str, number: signal.Signals, rng: random.Random) -> str:
    """Signal a process of a role; what was done, in words."""
    import psutil

    process = one_of(training, role, rng)
    training.mark()
    with contextlib.suppress(psutil.Error):
        process.send_signal(number)
    return f"{number.name} to {SINGULAR.get(role, role[:-1])} {process.pid}"


def stop_run(training: Training) -> str:
    """`rwkvctl run stop`, and its answer."""
    wait_for(training, lambda: bool(training.cast().drivers), "driver")
    training.mark()
    done = subprocess.run(
        rwkvctl("run", "stop", str(training.run_dir)),
        env=training.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    said = (done.stdout or done.stderr).strip().splitlines()
    return said[-1][:120] if said else f"code {done.returncode}"


def fill_disk(training: Training, rng: random.Random) -> str:
    """Let rank 0 write no file that is larger than some bytes, which it notices as it would a full disk."""
    process: list[Process] = []

    def look() -> bool:
        leader = leader_of(training.run_dir)
        process[:] = [each for each in training.cast().workers if each.pid == leader]
        return bool(process)

    wait_for(training, look, "rank 0")
    most = rng.choice([1, SMALLEST_FILE])
    training.mark()
    with contextlib.suppress(ProcessLookupError):
        _, hard = resource.prlimit(process[0].pid, resource.RLIMIT_FSIZE)
        resource.prlimit(process[0].pid, resource.RLIMIT_FSIZE, (most, hard))
    return f"no file over {most} bytes for rank 0, {process[0].pid}"


def leader_of(run_dir: Path) -> int | None:
    """The process that holds the lease of a run."""
    from rwkvctl.runs.lease import LEASE
    from rwkvctl.runs.lease_object import holder_of

    try:
        holder = holder_of((run_dir / LEASE).read_bytes())
    except OSError:
        return None
    return None if holder is None else int(holder["pid"])


def lock_tracking(training: Training, rng: random.Random) -> str:
    """Hold the tracking database for some seconds, as a backup or another program would."""
    seconds = rng.uniform(*LOCKED)
    database = training.home / "mlflow.db"
    training.mark()
    threading.Thread(target=hold, args=(database, seconds), daemon=True).start()
    return f"for {seconds:.1f} s"


def hold(database: Path, seconds: float) -> None:
    with contextlib.suppress(sqlite3.OperationalError), contextlib.closing(sqlite3.connect(database)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        time.sleep(seconds)
        connection.rollback()


def sound_checkpoints(run_dir: Path) -> list[Path]:
    """Newest first."""
    found = []
    for path in checkpoints(run_dir / "checkpoints"):
        with contextlib.suppress(OSError):  # deleted meanwhile
            if damage_of(path) is None:
                found.append(path)
    return found


# Between a kill and a resume: nobody writes --------------------------------------------------------------------------


def truncate_checkpoint(run_dir: Path, rng: random.Random) -> str:
    """Cut off the end of one file of the newest checkpoint."""
    path = a_file(run_dir, rng)
    size = rng.randrange(path.stat().st_size)
    with path.open("r+b") as file:
        file.truncate(size)
    return f"{path.parent.name}/{path.name} cut to {size} bytes"


def flip_bit(run_dir: Path, rng: random.Random) -> str:
    """Flip one bit of one file of the newest checkpoint."""
    path = a_file(run_dir, rng)
    place, bit = rng.randrange(path.stat().st_size), rng.randrange(8)
    with path.open("r+b") as file:
        file.seek(place)
        [byte] = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ 1 << bit]))
    return f"{path.parent.name}/{path.name}, bit {bit} of byte {place}"


def a_file(run_dir: Path, rng: random.Random) -> Path:
    newest = checkpoints(run_dir / "checkpoints")[0]
    return rng.choice(sorted(path for path in newest.iterdir() if path.stat().st_size))


def garble_pointer(run_dir: Path, rng: random.Random) -> str:
    """Leave in `latest.json` what a file system may leave of a file that was being replaced."""
    content = rng.choice([b"", b"\0" * 64, b'{"checkpoint": "step-0', b'{"checkpoint": "step-99999999"}'])
    (run_dir / "checkpoints" / "latest.json").write_bytes(content)
    return f"latest.json is {content[:32]!r}"


def tear_journal(run_dir: Path, rng: random.Random) -> str:
    """Leave half a line at the end of the journal, as a power cut does."""
    line = b'{"t": 1738300000000, "kind": "metrics", "step": 7, "values": {"train/loss": 0.'
    half = line[: rng.randrange(1, len(line))]
    with (run_dir / JOURNAL).open("ab") as file:
        file.write(half)
    return f"{len(half)} bytes of a line"


SIGNALS = {
    "worker killed": ("workers", signal.SIGKILL),
    "worker suspended": ("workers", signal.SIGSTOP),
    "worker terminated": ("workers", signal.SIGTERM),
    "loader killed": ("loaders", signal.SIGKILL),
    "nursery killed": ("nurseries", signal.SIGKILL),
    "driver killed": ("drivers", signal.SIGKILL),
    "driver terminated": ("drivers", signal.SIGTERM),
}
DAMAGE: dict[str, Callable[[Path, random.Random], str]] = {
    "checkpoint truncated": truncate_checkpoint,
    "checkpoint bit flipped": flip_bit,
    "pointer garbled": garble_pointer,
    "journal torn": tear_journal,
}


def damage(training: Training, kind: str, rng: random.Random) -> str:
    """Kill the driver and, when all of its processes are gone, damage what they have left on the disk."""
    if kind != "journal torn":  # the only sound checkpoint is nobody's to lose
        wait_for(training, lambda: len(sound_checkpoints(training.run_dir)) >= 2, "second checkpoint")
    said = send(training, "drivers", signal.SIGKILL, rng)
    if left := training.until_gone(PATIENCE):
        raise GivenUp(f"processes outlive their driver: {', '.join(left)}")
    if kind != "journal torn" and len(sound_checkpoints(training.run_dir)) < 2:
        return f"{said}; nothing damaged, for there was one checkpoint"
    return f"{said}; {DAMAGE[kind](training.run_dir, rng)}"


def strike(training: Training, kind: str, rng: random.Random) -> str:
    """Do a fault of a kind; what was done, in words.

    Raises:
        GivenUp: there was nobody to do it to.
    """
    if kind in SIGNALS:
        return send(training, *SIGNALS[kind], rng)
    match kind:
        case "run stopped":
            return stop_run(training)
        case "disk full":
            return fill_disk(training, rng)
        case "tracking locked":
            return lock_tracking(training, rng)
    return damage(training, kind, rng)
