"""What a person sees of a running job, read from its journal: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from rwkvctl.runs.journal import read

PLAIN_LINES_EVERY = 5.0
"""Seconds between two plain lines about steps; validations and messages are always printed."""


class Progress:
    """Follows a run's journal from where it stands now, in a thread, until the block ends."""

    def __init__(self, run_dir: Path):
        self.path = run_dir / "journal.jsonl"
        told, self.offset = read(self.path) if self.path.exists() else ([], 0)
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self._follow, daemon=True)
        self.view = make_view()
        for entry in told:  # a run that is being trained by another job has told its plan already
            if entry.get("event") == "plan":
                self.view.show(entry)

    def __enter__(self) -> Progress:
        self.thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stopped.set()
        self.thread.join()
        self._drain()
        self.view.close()

    def _follow(self) -> None:
        while not self.stopped.wait(0.3):
            self._drain()

    def _drain(self) -> None:
        if self.path.exists():
            entries, self.offset = read(self.path, self.offset)
            for entry in entries:
                self.view.show(entry)


def make_view() -> PlainView | BarView:
    """A bar where somebody watches, lines where a file or another program reads."""
    return BarView() if sys.stdout.isatty() else PlainView()


class PlainView:
    """One line for a validation or a message, and one every few seconds for the steps."""

    def __init__(self) -> None:
        self.total = self.per_epoch = 0
        self.printed = 0.0

    def show(self, entry: dict[str, Any]) -> None:
        match entry:
            case {"kind": "event", "event": "plan"}:
                self.per_epoch = entry["steps_per_epoch"]
                self.total = entry["epochs"] * self.per_epoch
            case {"kind": "event", "event": "message"}:
                self.line(entry["text"])
            case {"kind": "event", "event": "validation"}:
                self.line(describe_validation(entry))
            case {"kind": "metrics", "values": {"train/loss": _}}:
                self.step(entry["step"], entry["values"])

    def step(self, step: int, values: dict[str, float]) -> None:
        now = time.monotonic()
        if now - self.printed >= PLAIN_LINES_EVERY or step == self.total:
            self.printed = now
            self.line(describe_step(step, self.total, values))

    def line(self, text: str) -> None:
        print(text, flush=True)

    def close(self) -> None:
        pass


class BarView(PlainView):
    """A bar for the steps; everything else is printed above it."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        super().__init__()
        self.bar = RichProgress(
            TextColumn("step"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
        )
        self.task = self.bar.add_task("", total=None)
        self.bar.start()

    def step(self, step: int, values: dict[str, float]) -> None:
        text = f"loss {values['train/loss']:.4f}  {values['train/images_per_second']:.1f} img/s"
        self.bar.update(self.task, completed=step, total=self.total, description=text)

    def line(self, text: str) -> None:
        self.bar.console.print(text, highlight=False)

    def close(self) -> None:
        self.bar.stop()


def describe_step(step: int, total: int, values: dict[str, float]) -> str:
    """One log line: step, loss, rate, gradient norm, throughput, where the time goes, memory, time left."""
    speed = values["train/images_per_second"]
    parts = [
        f"step {step}/{total}",
        f"loss {values['train/loss']:.4f}",
        f"lr {values['train/lr']:.2e}",
        f"grad {values['train/grad_norm']:.3f}" if "train/grad_norm" in values else "no update",
        f"{speed:.1f} img/s",
    ]
    if "train/mfu" in values:
        parts.append(f"mfu {values['train/mfu']:.1%}")
    if "train/data_wait" in values:
        parts.append(f"data wait {values['train/data_wait']:.0%}")
    if "train/peak_memory_bytes" in values:
        parts.append(f"mem {values['train/peak_memory_bytes'] / 2**30:.1f} GiB")
    if "train/seconds_per_step" in values:
        parts.append(f"eta {duration((total - step) * values['train/seconds_per_step'])}")
    return "  ".join(parts)


def duration(seconds: float) -> str:
    """`2d 03:10`, `3:05:10` or `5:10`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, of_day = divmod(hours, 24)
    if days:
        return f"{days}d {of_day:02}:{minutes:02}"
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def describe_validation(entry: dict[str, Any]) -> str:
    """One line for a validation: the epoch and its scores."""
    scores = {key: value for key, value in entry.items() if isinstance(value, float)}
    return f"epoch {entry['epoch']}  " + "  ".join(f"{key} {value:.4f}" for key, value in scores.items())
