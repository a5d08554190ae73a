"""The end of a run before its last step: on request, or by SIGTERM on any of its processes.

A training ends behind a step on which its workers agree, with a checkpoint of it. What does not look by itself (an
evaluation, a sweep, a training that hangs) is interrupted by its driver.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

from rwkvctl.base.exit_codes import INTERRUPTED, STOPPED
from rwkvctl.config.specs.jobs import JobSpec, TrainingSpec
from rwkvctl.runs import mirror, stop
from rwkvctl.runs.lease import LEASE

if TYPE_CHECKING:  # every job comes by here, also those that need no torch
    from rwkv_jobs.worker import Worker

LOOK_EVERY = 1.0
"""Seconds between two looks of the workers. On a GPU each waits for the steps that are under way."""
SIGNAL_PATIENCE = 25.0
"""Seconds after SIGTERM until a process ends without another checkpoint; a pod is killed after 30."""
CODES = (0, INTERRUPTED, STOPPED)
"""By their number they are agreed on, the largest first."""


class Stopping:
    """Whether the run is to end, which all workers find out at the same step."""

    def __init__(self, me: Worker, run_dir: Path):
        self.me, self.run_dir = me, run_dir
        self.code = 0
        self.terminated = False
        self.until_look = self.since_look = 1
        self.clock = time.monotonic()

    def __enter__(self) -> Stopping:
        self.handlers = _on_sigterm(self.run_dir, self._begin)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _restore(self.handlers)

    def look(self) -> bool:
        """Called after every step, by all workers; True behind the last, of which a checkpoint is due."""
        import torch

        self.until_look -= 1
        if self.until_look <= 0:
            now = time.monotonic()
            seconds = (now - self.clock) / self.since_look
            steps = max(1, min(1000, int(LOOK_EVERY / seconds))) if seconds else 1
            own = [CODES.index(self._own()), steps if self.me.is_main else 0]
            found, steps = (-self.me.least(-torch.tensor(own, device=self.me.device))).tolist()
            self.code, self.until_look = CODES[found], steps
            self.since_look, self.clock = steps, now
        return bool(self.code)

    def leave(self) -> None:
        """Raise Stopped, when the checkpoint is taken, if the run is to end here."""
        if self.code:
            raise stop.Stopped(self.code)

    def _own(self) -> int:
        """What this worker knows of."""
        request = stop.asked(self.run_dir) if self.me.is_main else None
        return request.code if request else INTERRUPTED if self.terminated else 0

    def _begin(self) -> None:
        """The first SIGTERM."""
        self.terminated = True
        signal.signal(signal.SIGALRM, _interrupt)
        signal.setitimer(signal.ITIMER_REAL, SIGNAL_PATIENCE)


@contextmanager
def passed_on(spec: JobSpec, run_dir: Path) -> Iterator[None]:
    """SIGTERM of the driver of a training in other processes: they are asked for a checkpoint, if they have begun."""

    def ask() -> None:
        if mirror.of(run_dir) is None and not (run_dir / LEASE).exists():
            raise KeyboardInterrupt
        stop.ask(run_dir, code=INTERRUPTED)

    handlers = _on_sigterm(run_dir, ask) if isinstance(spec, TrainingSpec) else {}
    try:
        yield
    finally:
        _restore(handlers)


@contextmanager
def watched(spec: JobSpec, run_dir: Path) -> Iterator[None]:
    """The driver looks for a request too, and interrupts what does not end by itself. Raises Stopped at once where
    the run was stopped before it began."""
    if (request := stop.asked(run_dir)) is not None:
        raise stop.Stopped(request.code)
    if threading.current_thread() is not threading.main_thread():  # a trial of a sweep, which its driver ends
        yield
        return
    over = threading.Event()
    patience = stop.PATIENCE if isinstance(spec, TrainingSpec) else 0.0
    thread = threading.Thread(target=_watch, args=(run_dir, over, patience), name="stop-watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _watch(run_dir: Path, over: threading.Event, patience: float) -> None:
    seen: float | None = None
    while not over.wait(LOOK_EVERY):
        request = stop.asked(run_dir)
        if request is None:
            continue
        seen = time.monotonic() if seen is None else seen
        limit = min(patience, SIGNAL_PATIENCE) if request.code == INTERRUPTED else patience
        if request.now or time.monotonic() - seen >= limit:
            stop.ask(run_dir, now=True, code=request.code)
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
            return


Handlers = dict[signal.Signals, Any]


def _on_sigterm(run_dir: Path, first: Callable[[], None]) -> Handlers:
    """Call `first` at the first SIGTERM, ignore others; at one with a request for an end at once, interrupt. Only the
    main thread has handlers."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    calls = [first]

    def handle(number: int, frame: FrameType | None) -> None:
        request = stop.asked(run_dir)
        if request is not None and request.now:
            _interrupt(number, frame)
        if calls:
            calls.pop()()

    handlers: Handlers = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGALRM)}
    signal.signal(signal.SIGTERM, handle)
    return handlers


def _interrupt(number: int, _: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


def _restore(handlers: Handlers) -> None:
    if handlers:
        signal.setitimer(signal.ITIMER_REAL, 0)
    for number, handler in handlers.items():
        if signal.getsignal(signal.SIGTERM) is not signal.SIG_IGN or number != signal.SIGTERM:
            signal.signal(number, handler)
