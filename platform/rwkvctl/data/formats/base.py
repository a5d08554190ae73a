"""What every format hands to `prepare`."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rwkvctl.data.splits import Split
from rwkvctl.data.writer import Limits


@dataclass(frozen=True)
class Options:
    """What the user chose."""

    dataset: str
    classes: tuple[str, ...] | None = None
    split: str = "8:1:1"
    seeds: tuple[int, ...] = (41, 1029, 3407)
    allow_partial: bool = False


class BadFile(ValueError):
    """A raw file that cannot become a sample: one line, file first."""


@dataclass(frozen=True)
class Sample:
    """One sample, checked and encoded.

    members: extension -> bytes, without json; meta: its json; sources: path in the source -> SHA-256;
    size: (H, W); pixels: how many pixels each class id has (segmentation), or None.
    """

    key: str
    members: dict[str, bytes]
    meta: dict[str, Any]
    sources: dict[str, str]
    size: tuple[int, int]
    pixels: NDArray[np.int64] | None = None


Read = Callable[[str, Any], Sample]
MakeSplits = Callable[[Mapping[str, Sequence[str]]], dict[str, Split]]


@dataclass
class Plan:
    """A data set that is ready to be written.

    parts: shard part (`all`, `train`, ...) -> items in the order of writing; read(part, item) makes the sample or
    raises BadFile; make_splits(ids by part) makes the splits, the first being the default.
    """

    form: str
    task: Literal["segmentation", "classification"]
    classes: list[str]
    image_kind: Literal["rgb8", "float"]
    parts: dict[str, list[Any]]
    read: Read
    make_splits: MakeSplits
    mask_rule: str | None = None
    intensity: dict[str, Any] | None = None
    expected: dict[str, int] = field(default_factory=dict)
    excluded: list[dict[str, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    limits: Limits = field(default_factory=Limits)
    licence: str | None = None
    citation: str | None = None

    @property
    def channels(self) -> int:
        return 3 if self.image_kind == "rgb8" else 1


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def read_bytes(path: Path) -> bytes:
    """A raw file's content; BadFile when the system cannot read it."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadFile(f"{path}: cannot be read ({error.strerror})") from error


def encode_npy(array: NDArray[np.generic]) -> bytes:
    """An npy file, version 1.0, little-endian, C order, no pickle."""
    buffer = io.BytesIO()
    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    np.lib.format.write_array(buffer, little, version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def count_pixels(mask: NDArray[np.uint8], num_classes: int) -> NDArray[np.int64]:
    """How many pixels every class id has; the ignored ones (255) are in none."""
    return np.bincount(mask.ravel(), minlength=256)[:num_classes]
