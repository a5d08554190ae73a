"""Which cases of an evaluation are shown: the worst, the median ones, and the worst volume as a whole.

Which these are is known when all are scored, so their masks are kept until then, compressed, in a temporary file of
each worker.
"""

from __future__ import annotations

import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rwkv_jobs.case_scores import Mask, Predicted
from rwkvctl.base.errors import JobFailedError
from rwkvctl.base.files import write_bytes
from rwkvctl.data.feed.cases import read_case
from rwkvctl.data.store.reader import Reader
from rwkvctl.pictures.captions import Caption
from rwkvctl.pictures.overlays import overlay_png
from rwkvctl.pictures.palette import palette
from rwkvctl.pictures.shown import Slice, Stack, slice_of, stack_of
from rwkvctl.training.metrics import ClassScore

AllScores = Mapping[str, Sequence[ClassScore]]


class KeptMasks:
    """Masks by the row of their case, on the disk."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  (lives as long as this)
        self._places: dict[int, tuple[int, int, tuple[int, ...]]] = {}

    def keeping(self, predicted: Iterator[Predicted]) -> Iterator[Predicted]:
        for row, mask in predicted:
            content = zlib.compress(mask.tobytes(), 1)
            try:
                place = self._file.seek(0, 2)
                self._file.write(content)
            except OSError as error:
                raise JobFailedError(
                    f"{tempfile.gettempdir()}: masks cannot be kept for the pictures ({error.strerror}); "
                    "set TMPDIR to a larger disk, or --set overlays=0"
                ) from error
            self._places[row] = place, len(content), mask.shape
            yield row, mask

    def mask(self, row: int) -> Mask:
        place, size, shape = self._places[row]
        self._file.seek(place)
        return np.frombuffer(zlib.decompress(self._file.read(size)), np.uint8).reshape(shape)

    def close(self) -> None:
        self._file.close()


class Chosen(NamedTuple):
    """Keys of the cases to show, the worst first."""

    worst: list[str]
    median: list[str]


class Shown(NamedTuple):
    """What one worker shows of its cases, by key."""

    slices: dict[str, Slice]
    stack: Stack | None


@dataclass
class Gallery:
    """The `size` cases with the lowest DSC, half as many around the median, and the worst volume."""

    folder: Path
    size: int
    worst: list[Slice] = field(default_factory=list)
    median: list[Slice] = field(default_factory=list)
    stack: Stack | None = None

    def choose(self, cases: AllScores) -> Chosen:
        ranked = sorted(cases, key=lambda key: (mean_dsc(cases[key]), key))
        worst, others = ranked[: self.size], ranked[self.size :]
        count = min(len(others), -(-self.size // 2))
        first = max(0, min(len(ranked) // 2 - count // 2 - len(worst), len(others) - count))
        return Chosen(worst, others[first : first + count])

    def look(self, cases: AllScores, reader: Reader, kept: KeptMasks) -> Shown:
        """The chosen cases among those of this worker's reader."""
        chosen = self.choose(cases)
        rows = {reader.key(row): row for row in range(len(reader))}
        slices, stack = {}, None
        for key in (*chosen.worst, *chosen.median):
            if key not in rows:
                continue
            case, mask = read_case(reader, rows[key]), kept.mask(rows[key])
            slices[key] = slice_of(key, case.image, case.mask, mask)
            if key == chosen.worst[0] and case.mask.ndim == 3:
                stack = stack_of(key, case.image, case.mask, mask)
        return Shown(slices, stack)

    def see(self, cases: AllScores, everyone: Sequence[Shown]) -> None:
        """Take what the workers show."""
        slices = {key: found for shown in everyone for key, found in shown.slices.items()}
        self.worst, self.median = ([slices[key] for key in keys] for keys in self.choose(cases))
        self.stack = next((shown.stack for shown in everyone if shown.stack is not None), None)

    def write(self, cases: AllScores, classes: Sequence[str]) -> None:
        """Write `<key>.png` for each of the worst."""
        for shown in self.worst:
            content = draw(shown, cases[shown.key], classes)
            write_bytes(self.folder / f"{shown.key}.png", content)


def mean_dsc(scores: Sequence[ClassScore]) -> float:
    """Strict DSC over the classes that count; 1 where none does."""
    counted = [score.strict_dsc for score in scores if score.strict_dsc is not None]
    return sum(counted) / len(counted) if counted else 1.0


def draw(shown: Slice, scores: Sequence[ClassScore], classes: Sequence[str]) -> bytes:
    """A captioned picture: image | truth | prediction."""
    return overlay_png(shown.image, shown.truth, shown.pred, caption=caption_of(shown, scores, classes))


def caption_of(shown: Slice, scores: Sequence[ClassScore], classes: Sequence[str]) -> Caption:
    """What the picture is of, and the colour and the scores of each class."""
    there = {int(each) for labels in (shown.truth, shown.pred) for each in np.unique(labels)} - {0, 255}
    legend = [
        (colour_of(score.class_id), f"{classes[score.class_id]}: {score.in_words()}")
        for score in scores
        if score.class_id in there or score.strict_dsc is not None
    ]
    place = f", {shown.place}" if shown.place else ""
    return Caption(f"{shown.key}{place}", ("image", "truth", "prediction"), legend)


def colour_of(class_id: int) -> tuple[int, int, int]:
    red, green, blue = palette()[class_id].tolist()
    return red, green, blue
