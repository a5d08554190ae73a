"""What every format is made of: its entry in the list of data sets, and what it hands to `prepare`."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from rwkvctl.data.convert.class_table import ClassTable
from rwkvctl.data.convert.sources import RawFile
from rwkvctl.data.images.looks import counts_of
from rwkvctl.data.store.splits import Split
from rwkvctl.data.store.writer import Limits

__all__ = ["Dataset", "Item", "Options", "Plan", "Sample", "count_pixels", "encode_npy", "sha256"]

Task = Literal["segmentation", "classification"]


@dataclass(frozen=True)
class Dataset:
    """A data set's entry in `rwkvctl data list`.

    classes: by class id, none when the source names them; expected: what a whole source has; forms: the downloads
    that are understood, name -> layout; access: where to ask for it; options: the fields of `Options` that it takes;
    lesions: whether each connected part of a mask is a finding of its own, to be counted.
    """

    name: str
    title: str
    task: Task
    classes: tuple[str, ...]
    expected: Mapping[str, int]
    forms: Mapping[str, str]
    licence: str
    access: str
    citation: str = ""
    options: tuple[str, ...] = ()
    lesions: bool = False


@dataclass(frozen=True)
class Options:
    """What the user chose; None where nothing was said."""

    dataset: str
    allow_partial: bool = False
    ratio: str | None = None
    groups: str | None = None
    split: str | None = None
    seeds: tuple[int, ...] | None = None
    classes: tuple[str, ...] | None = None
    class_table: ClassTable | None = None
    orientation: str | None = None
    busi_masks: str | None = None
    max_side: int | None = None
    range: tuple[float, float] | None = None
    images: str | None = None
    more_images: tuple[str, ...] | None = None
    masks: str | None = None
    annotator: str | None = None
    split_from: str | None = None
    intensity: str | None = None
    csv: str | None = None
    more_csv: tuple[str, ...] | None = None
    labels: str | None = None
    inside: str | None = None
    axes: str | None = None


class Item(Protocol):
    """What is to become one sample: a frozen dataclass, small, picklable, with a `repr` that tells all of it."""

    @property
    def key(self) -> str: ...

    @property
    def files(self) -> Sequence[RawFile]: ...


@dataclass(frozen=True)
class Sample:
    """One sample, checked and encoded.

    members: extension -> bytes, without json; meta: its json; sources: path in the source -> SHA-256;
    size: (H, W); pixels: how many pixels each class id has (segmentation), or None; look: of the first sample of a
    volume, what tells whether another volume is the same scan, see `store.same_volume`.
    """

    key: str
    members: dict[str, bytes]
    meta: dict[str, Any]
    sources: dict[str, str]
    size: tuple[int, int]
    pixels: NDArray[np.int64] | None = None
    look: str | None = None


Read = Callable[[str, Any], Sample]
MakeSplits = Callable[[Mapping[str, Sequence[str]], Mapping[str, str]], dict[str, Split]]


@dataclass
class Plan:
    """A data set that is ready to be written.

    parts: shard part (`all`, `train`, ...) -> items in the order of writing; read(part, item) makes the sample or
    raises BadFile, in any process (it must be picklable); make_splits(ids by part, leak group by id) makes the
    splits, the first being the default; limits: when a shard is full, by part; adopted: part -> shards that exist
    already and are taken over as they are, each with the items inside it, which `read` only checks; channel_names: of
    images that are neither photographs nor of one nameless channel; channel_files: how many channels each of an image's
    files has, if not one; regions: as `schema.Region` has them; settle: a
    first pass over the files for what the plan needs to know of all of them, gone through before conversion.
    """

    form: str
    task: Task
    classes: Sequence[str]
    image_kind: Literal["rgb8", "float"]
    parts: Mapping[str, Sequence[Item]]
    read: Read
    make_splits: MakeSplits
    mask_rule: str | None = None
    intensity: dict[str, Any] | None = None
    orientation: str | None = None
    channel_names: Sequence[str] = ()
    channel_files: Sequence[int] = ()
    regions: Sequence[Mapping[str, Any]] = ()
    settle: Callable[[Plan], Plan] | None = None
    excluded: list[dict[str, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    limits: Mapping[str, Limits] = field(default_factory=dict)
    adopted: Mapping[str, Sequence[tuple[RawFile, Sequence[Item]]]] = field(default_factory=dict)

    @property
    def channels(self) -> int:
        return 3 if self.image_kind == "rgb8" else len(self.channel_names) or 1


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def encode_npy(array: NDArray[np.generic]) -> bytes:
    """An npy file, version 1.0, little-endian, C order, no pickle."""
    buffer = io.BytesIO()
    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    np.lib.format.write_array(buffer, little, version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def count_pixels(mask: NDArray[np.uint8], num_classes: int) -> NDArray[np.int64]:
    """How many pixels every class id has; the ignored ones (255) are in none."""
    return counts_of(mask)[:num_classes]
