"""The trials of a sweep one after another in its own process, without Ray: for notebooks, debuggers and tests."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from rwkv_jobs import trial
from rwkv_jobs.trial import Outcome

Call = Future[Outcome]


class Here:
    """What `trial_runner.Pool` is, with one place."""

    def __init__(self) -> None:
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="trial")
        self.busy = False

    def take(self) -> Any | None:
        """This process, unless it is training a trial."""
        if self.busy:
            return None
        self.busy = True
        return self

    def give_back(self, runner: Any, *, keep: bool) -> None:
        self.busy = False

    def start(self, runner: Any, fields: dict[str, Any], run_dir: Path, *, timed: bool) -> Call:
        return self.thread.submit(trial.train, fields, run_dir, timed=timed)

    def ended(self, calls: list[Call], timeout: float) -> list[Call]:
        return list(wait(calls, timeout).done)

    def outcome(self, call: Call) -> Outcome:
        return call.result()
