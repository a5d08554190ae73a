"""How far a prediction is, on standard error: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

FIRST, EVERY = 10.0, 60.0
"""Seconds until the first line where nobody watches, and between two."""


class Progress:
    """Counts inputs, and of the one at work the share of its slices; says how long the others will take."""

    def __init__(self, inputs: int):
        self.inputs, self.complete, self.share = inputs, 0, 0.0
        self.started = time.monotonic()
        self.next_line = self.started + FIRST
        self.bar: Any = None

    def __enter__(self) -> Progress:
        if sys.stderr.isatty() and self.inputs:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as RichProgress

            columns = (MofNCompleteColumn(), BarColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
            self.bar = RichProgress(*columns, console=Console(stderr=True), transient=True)
            self.task = self.bar.add_task("", total=self.inputs)
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.stop()

    def seen(self, path: Path, share: float) -> None:
        """Such a share of an input was segmented."""
        self.share = min(share, 1.0)
        self._tell(path.name)

    def done(self) -> None:
        """An input is written, or has failed."""
        self.complete += 1
        self.share = 0.0
        self._tell("")

    def _tell(self, name: str) -> None:
        if self.bar is not None:
            self.bar.update(self.task, completed=min(self.complete + self.share, self.inputs), description=name)
        elif time.monotonic() >= self.next_line and self.complete < self.inputs:
            self.next_line = time.monotonic() + EVERY
            print(self.line(), file=sys.stderr, flush=True)

    def line(self) -> str:
        passed, reached = time.monotonic() - self.started, self.complete + self.share
        left = timedelta(seconds=round(passed / reached * (self.inputs - reached))) if reached else "unknown"
        of_one = f", {100 * self.share:.0f} % of the next" if self.share else ""
        return f"{self.complete} of {self.inputs} inputs{of_one}; time left: {left}"
