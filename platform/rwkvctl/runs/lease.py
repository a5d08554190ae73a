"""One trainer per run directory: a lease that a dead trainer loses and a living one keeps.

The lease is a small file that is replaced atomically, so it works on shared file systems without locks. Its holder
touches it every few seconds. A process that wants it watches for that by its own clock, since the clocks of two
machines may differ. Two that steal it at the same moment may both think for an instant that they hold it; the rename
of one comes last, and `check`, which the trainer calls before every write that matters, tells the other.

A run in an object store has its lease there (`lease_object`): `check` then tells what the last beat has found, so that
nobody waits for the store; `confirm` asks it.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import uuid
from pathlib import Path
from types import TracebackType
from typing import Any

from rwkvctl.base import identity
from rwkvctl.base.errors import UserError
from rwkvctl.base.files import write_json
from rwkvctl.base.object_store import StoreError
from rwkvctl.runs import mirror
from rwkvctl.runs.lease_object import Contended, LeaseObject, holder_of

LEASE = "lease.json"
JOB = "RWKVCTL_JOB"
"""Variable with a name that the driver of a job and all of its workers share, those that are started again too."""
ADVICE = "stop that job first, or use another --name for this one"


class LeaseLost(RuntimeError):
    """Another trainer has taken this run directory: stop, and write nothing more."""


class RunLease:
    """The right to write to `run_dir`, held until `release` or until another process takes it from a dead holder.

    Args:
        run_dir: created if it is absent.
        wait: how long to wait for a living holder to finish, in seconds, before it is a UserError. The orphaned
            workers of a killed driver live on for some seconds.
        advice: the end of that error: what to do.
        stale_after: a holder on another machine that has not touched the lease for so many seconds is dead.

    A holder on this machine is dead when its process is. One on another machine that belongs to the same job (`JOB`)
    was given up by it: its node is gone, or cut off without knowing. A lease of this very process is taken over at once
    (a notebook runs its cell again). Whoever held it gets LeaseLost.
    """

    def __init__(
        self, run_dir: str | os.PathLike[str], *, wait: float = 60.0, stale_after: float = 30.0, advice: str = ADVICE
    ):
        self.path = Path(run_dir) / LEASE
        self._run = mirror.address(Path(run_dir))
        self.token = uuid.uuid4().hex
        self._beat = stale_after / 6
        self._checked = 0.0
        self._released = threading.Event()
        self._place = _place(Path(run_dir))
        deadline = time.monotonic() + wait
        while not self._take(deadline, stale_after, advice):
            pass
        self.check()
        self._heart = threading.Thread(target=self._keep_alive, name="run-lease", daemon=True)
        self._heart.start()

    def check(self, max_age: float = 0.0) -> None:
        """Raise LeaseLost if another process holds the lease; skipped if the last check is younger than `max_age` s."""
        now = time.monotonic()
        if max_age and now - self._checked < max_age:
            return
        holder = self._place.known()
        if holder is None or holder["token"] != self.token:
            how = f"was taken over by {_name(holder)}" if holder else "lost its lease.json"
            raise LeaseLost(f"{self._run} {how}: this process stops writing to it")
        self._checked = now

    def confirm(self) -> None:
        """As `check`, and touch it; a store's as it is now. Raises what a file system or a store does."""
        self.check()
        self._place.beat()
        self.check()

    def release(self) -> None:
        """Give the lease back; harmless when it is already lost, and one that no store can take back ends by itself."""
        self._released.set()
        with contextlib.suppress(StoreError):
            holder = self._place.read()
            if holder is not None and holder["token"] == self.token:
                self._place.remove()

    def __enter__(self) -> RunLease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()

    def _take(self, deadline: float, stale_after: float, advice: str) -> bool:
        """Wait until there is no living holder, and take the lease; False where another was faster."""
        self._wait_for_holder(deadline, stale_after, advice)
        try:
            self._place.take(
                {"token": self.token, "taken": time.time(), "job": os.environ.get(JOB), **identity.of_process()}
            )
        except Contended:
            return False
        return True

    def _wait_for_holder(self, deadline: float, stale_after: float, advice: str) -> None:
        seen: tuple[str, object] | None = None
        seen_at = time.monotonic()
        while (holder := self._place.read()) is not None and not _is_dead(holder):
            now = time.monotonic()
            beat = (holder["token"], self._place.last_beat())
            if beat != seen:
                seen, seen_at = beat, now
            elif not identity.is_local(holder) and now - seen_at >= stale_after:
                return
            if now >= deadline:
                raise UserError(f"run {self._run} is being written by {_name(holder)}: {advice}")
            time.sleep(min(self._place.pause, stale_after / 6))

    def _keep_alive(self) -> None:
        while not self._released.wait(self._beat):
            try:
                self.confirm()
            except LeaseLost:
                return
            except (OSError, StoreError):
                continue  # What it lies on may be unavailable for a moment; `check` in the trainer decides.


class _LeaseFile:
    """The lease as a file: what holds it is read anew each time."""

    pause = 0.2
    """Seconds between two looks at it."""

    def __init__(self, path: Path):
        self.path = path

    def read(self) -> dict[str, Any] | None:
        """The holder, or None where there is none or its file is not one of ours."""
        try:
            return holder_of(self.path.read_bytes())
        except FileNotFoundError:
            return None

    known = read

    def last_beat(self) -> object:
        try:
            return self.path.stat().st_mtime_ns
        except FileNotFoundError:
            return 0

    def take(self, holder: dict[str, Any]) -> None:
        write_json(self.path, holder)

    def beat(self) -> None:
        os.utime(self.path)

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)


def _place(run_dir: Path) -> _LeaseFile | LeaseObject:
    in_store = mirror.of(run_dir)
    return _LeaseFile(run_dir / LEASE) if in_store is None else LeaseObject(in_store.objects, LEASE)


def _name(holder: dict[str, Any]) -> str:
    return f"process {holder['pid']} on {holder['host']}"


def _is_dead(holder: dict[str, Any]) -> bool:
    """Whether the holder is a process of this machine that has ended, or this very process, or one of this job's on
    another machine: the job starts a worker only where it has given up the one before."""
    if not identity.is_local(holder):
        return holder.get("job") is not None and holder["job"] == os.environ.get(JOB)
    return holder["pid"] == os.getpid() or identity.start_time(holder["pid"]) != holder["started"]
