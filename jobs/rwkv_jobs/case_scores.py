"""Scores of segmented cases, computed in processes beside the device."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rwkvctl.base.errors import JobFailedError, UserError
from rwkvctl.data.feed.cases import spacing_of
from rwkvctl.data.feed.loader_processes import begin_process, process_context
from rwkvctl.data.store.reader import Reader
from rwkvctl.training import metrics

Mask = NDArray[np.uint8]
Predicted = tuple[int, Mask]
"""The row of a case and its mask at the native size."""


class Scored(NamedTuple):
    """The scores of a case."""

    key: str
    scores: list[metrics.ClassScore]
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
    regions: tuple[tuple[int, ...], ...] = ()
    """The classes of each region, where these are scored in the place of classes."""

    def score(self, row: int, prediction: Mask) -> Scored:
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
            regions=self.regions,
        )
        return Scored(key, scores, meta.get("group_id"))


class Scorers:
    """Processes that score the cases of a reader; with `processes` 0 this one does. They start when they are first
    needed, and stay until `close`."""

    def __init__(self, scoring: Scoring, processes: int):
        self.scoring, self.processes = scoring, processes
        self._pool: ProcessPoolExecutor | None = None

    def each(self, predicted: Iterable[Predicted]) -> Iterator[Scored]:
        """Score cases in their order while the next are being predicted.

        One prediction more than there are processes waits at most: the device waits rather than begin another.
        """
        if not self.processes:
            for row, prediction in predicted:
                yield self.scoring.score(row, prediction)
            return
        self._pool = self._pool or ProcessPoolExecutor(self.processes, process_context(), _begin, (self.scoring,))
        waiting: deque[Future[Scored]] = deque()
        try:
            for row, prediction in predicted:
                waiting.append(self._pool.submit(_score, row, prediction))
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


def _score(row: int, prediction: Mask) -> Scored:
    return _scoring.score(row, prediction)
