"""Scores of segmented cases, computed in processes beside the device, and pictures of the worst."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rwkvctl.base.errors import JobFailedError, UserError
from rwkvctl.base.files import write_bytes
from rwkvctl.data.feed.cases import Case, read_case, spacing_of
from rwkvctl.data.feed.loader_processes import begin_process, process_context
from rwkvctl.data.store.reader import Reader
from rwkvctl.pictures.overlays import overlay_png
from rwkvctl.training import metrics

Mask = NDArray[np.uint8]
Predicted = tuple[int, Mask]
"""The row of a case and its mask at the native size."""

Bar = tuple[float, str]
"""Mean DSC and key that a case must be below to be drawn."""

NEVER: Bar = (-1.0, "")


class Scored(NamedTuple):
    """The scores of a case, and its picture if it was below the bar."""

    key: str
    scores: list[metrics.ClassScore]
    picture: bytes | None
    group: str | None = None
    """Its patient, sequence or video, if the data set says."""


@dataclass(frozen=True)
class Scoring:
    """How the cases of a reader are scored."""

    reader: Reader
    num_classes: int
    ignore_index: int | None
    hd95: bool
    choices: metrics.Choices = metrics.USUAL

    def score(self, row: int, prediction: Mask, bar: Bar) -> Scored:
        """Compare a mask with the truth, which is read here."""
        key, truth, meta = self.reader.key(row), self.reader.mask(row), self.reader.meta(row)
        if prediction.shape != truth.shape:
            raise UserError(f"{key}: image {prediction.shape} and mask {truth.shape} differ; prepare the data again")
        scores = metrics.score_case(
            prediction,
            truth,
            self.num_classes,
            spacing_of(meta),
            hd95=self.hd95,
            ignore_index=self.ignore_index,
            choices=self.choices,
        )
        drawn = (mean_dsc(scores), key) < bar
        picture = draw(read_case(self.reader, row), prediction) if drawn else None
        return Scored(key, scores, picture, meta.get("group_id"))


class Scorers:
    """Processes that score the cases of a reader; with `processes` 0 this one does. They start when they are first
    needed, and stay until `close`."""

    def __init__(self, scoring: Scoring, processes: int):
        self.scoring, self.processes = scoring, processes
        self._pool: ProcessPoolExecutor | None = None

    def each(self, predicted: Iterable[Predicted], bar: Callable[[], Bar] = lambda: NEVER) -> Iterator[Scored]:
        """Score cases in their order while the next are being predicted.

        One prediction more than there are processes waits at most: the device waits rather than begin another.
        """
        if not self.processes:
            for row, prediction in predicted:
                yield self.scoring.score(row, prediction, bar())
            return
        self._pool = self._pool or ProcessPoolExecutor(self.processes, process_context(), _begin, (self.scoring,))
        waiting: deque[Future[Scored]] = deque()
        try:
            for row, prediction in predicted:
                waiting.append(self._pool.submit(_score, row, prediction, bar()))
                if len(waiting) > self.processes:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool:
            raise JobFailedError("a process that computes scores ended early, perhaps for want of memory") from None

    def close(self) -> None:
        """End the processes; what waits for them is not scored."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


def _begin(scoring: Scoring) -> None:
    """What a process of the pool keeps: the reader and how to score."""
    global _scoring
    begin_process()
    _scoring = scoring


_scoring: Scoring


def _score(row: int, prediction: Mask, bar: Bar) -> Scored:
    return _scoring.score(row, prediction, bar)


# Pictures -----------------------------------------------------------------------------------------------------------


class Gallery:
    """Keeps pictures of the `size` cases with the lowest DSC (among those of this worker)."""

    def __init__(self, folder: Path, size: int):
        self.folder, self.size = folder, size
        self.worst: list[tuple[float, str, bytes]] = []

    def bar(self) -> Bar:
        """What a case must be below to be among the worst so far."""
        if len(self.worst) < self.size:
            return float("inf"), ""
        return self.worst[-1][:2] if self.worst else NEVER

    def see(self, case: Scored) -> None:
        """Keep the picture of a case if it is among the worst so far."""
        if case.picture is not None:
            self.worst.append((mean_dsc(case.scores), case.key, case.picture))
            self.worst = sorted(self.worst, key=lambda item: item[:2])[: self.size]

    def write(self) -> None:
        """Write `<key>.png` for every case that was kept."""
        for _, key, content in self.worst:
            write_bytes(self.folder / f"{key}.png", content)


def mean_dsc(scores: list[metrics.ClassScore]) -> float:
    """Strict DSC over the classes that count; 1 where none does."""
    counted = [score.strict_dsc for score in scores if score.strict_dsc is not None]
    return sum(counted) / len(counted) if counted else 1.0


def draw(case: Case, prediction: Any) -> bytes:
    """A picture of a case; of a volume, the slice with the most foreground in truth and prediction."""
    if case.mask.ndim == 2:
        return overlay_png(case.image, case.mask, prediction)
    z = int(((case.mask > 0).sum(axis=(1, 2)) + (prediction > 0).sum(axis=(1, 2))).argmax())
    return overlay_png(case.image[z], case.mask[z], prediction[z])
