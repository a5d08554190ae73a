"""A run's journal shown elsewhere too: as event files for TensorBoard, as a run of Weights & Biases.

Both are written from the journal, as MLflow's run is, by a thread of the driver that nobody waits for. Whatever goes
wrong there is one warning, and the run goes on without that mirror; the journal has everything, and the next start of
the run, or `rwkvctl sync`, brings the mirror up to date again.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from rwkvctl.base.errors import UserError
from rwkvctl.base.files import locked_or_refused
from rwkvctl.runs import journal
from rwkvctl.runs.sync import first_line

log = logging.getLogger("rwkvctl")

CHUNK_LINES = 2000
PACKAGES = {"tensorboard": ("tensorboardX", "tensorboardX"), "wandb": ("wandb", "'rwkvctl[wandb]'")}
"""By mirror: what is imported, and what is installed to have it."""


class Target(Protocol):
    """What a journal is written to."""

    offset: int
    """Byte of the journal from which on it has nothing yet."""

    def write(self, entries: Sequence[dict[str, Any]], offset: int) -> None:
        """Take the entries up to that byte; when it returns they are there, once."""

    def close(self) -> None: ...


def check(names: Iterable[str]) -> None:
    """UserError unless the packages of mirrors are installed here."""
    for name in names:
        package, install = PACKAGES[name]
        found = importlib.util.find_spec(package)
        if found is None or found.origin is None:  # a folder of that name, as W&B leaves one, is no package
            raise UserError(
                f"tracking.mirrors: {name} needs the package {package}, which is not installed: pip install {install}"
            )


def opened(name: str, run_dir: Path) -> Target:
    """A mirror of a run's journal, as far as it has come."""
    if name == "tensorboard":
        from rwkvctl.runs.tensorboard_events import EventFiles

        return EventFiles(run_dir)
    from rwkvctl.runs.wandb_run import WandbRun

    return WandbRun(run_dir)


class JournalMirrors:
    """Writes a run's journal to its mirrors, in a thread while the run is going.

    Only one process writes the mirrors of a run: another one that still does, on this machine, is waited for.
    """

    def __init__(self, run_dir: Path, names: Sequence[str]):
        self.run_dir, self.names = run_dir.absolute(), tuple(names)
        self.failed: dict[str, str] = {}
        """Why a mirror was given up."""
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, interval: float = 2.0, delay: float = 0.0) -> None:
        """Begin, after `delay` seconds, and look for more every `interval` seconds; does nothing without mirrors."""
        if self.names and self._thread is None:
            self._thread = threading.Thread(
                target=self._run, args=(interval, delay), name="journal-mirrors", daemon=True
            )
            self._thread.start()

    def close(self, timeout: float = 30.0) -> None:
        """Write what is left and stop, but do not wait for it any longer than `timeout` seconds."""
        self._stop.set()
        if self._thread is None:
            return
        self._thread.join(timeout)
        if self._thread.is_alive():
            log.warning("%s of %s: not up to date yet; %s", " and ".join(self.names), self.run_dir.name, self._later())

    def write_all(self) -> bool:
        """Bring all mirrors up to date, here and now; False where another process is at it."""
        if not self.names:
            return True
        with locked_or_refused(self.run_dir / "mirrors") as ours:
            if ours:
                self._stop.set()
                self._follow(0.0)
            return ours

    def _run(self, interval: float, delay: float) -> None:
        try:
            self._stop.wait(delay)
            while True:
                with locked_or_refused(self.run_dir / "mirrors") as ours:
                    if ours:
                        self._follow(interval)
                if ours or self._stop.wait(interval):
                    return
        except Exception as error:  # of a disk, say: whatever it is must not reach the training
            for name in self.names:
                self._give_up(name, error)

    def _follow(self, interval: float) -> None:
        targets: dict[str, Target] = {}
        for name in self.names:
            self._guarded(name, targets, lambda name=name: targets.update({name: opened(name, self.run_dir)}))  # type: ignore[misc]
        try:
            while targets:
                last = self._stop.is_set()
                for name, target in list(targets.items()):
                    self._guarded(name, targets, lambda target=target: self._catch_up(target))  # type: ignore[misc]
                if last:
                    return
                self._stop.wait(interval)
        finally:
            for name, target in list(targets.items()):
                self._guarded(name, targets, target.close)

    def _catch_up(self, target: Target) -> None:
        path = self.run_dir / journal.JOURNAL_NAME
        while path.exists():
            entries, offset = journal.read(path, target.offset, CHUNK_LINES)
            if not entries:
                return
            target.write(entries, offset)

    def _guarded(self, name: str, targets: dict[str, Target], action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # whatever a library, a disk or a server can do must not reach the training
            self._give_up(name, error)
            with contextlib.suppress(Exception):
                if (target := targets.pop(name, None)) is not None:
                    target.close()

    def _give_up(self, name: str, error: Exception) -> None:
        if name not in self.failed:
            self.failed[name] = first_line(error)
            text = "%s of %s: %s; the run goes on without it; %s"
            log.warning(text, name, self.run_dir.name, self.failed[name], self._later())

    def _later(self) -> str:
        return f"write it later with: rwkvctl sync {self.run_dir.name}"
