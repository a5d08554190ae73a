"""What a person sees of a running job, read from its journal: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from types import TracebackType

from rwkvctl.runs.journal import read
from rwkvctl.runs.lines import PlainView


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

    def step(self, step: int, values: dict[str, float], now: float) -> None:
        text = f"loss {values['train/loss']:.4f}  {values['train/images_per_second']:.1f} img/s"
        self.bar.update(self.task, completed=step, total=self.total, description=text)

    def line(self, text: str) -> None:
        self.bar.console.print(text, highlight=False)

    def close(self) -> None:
        self.bar.stop()
