"""Reading Synapse's files and bringing their labels to TransUNet's numbers."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rwkvctl.base.errors import BadFile
from rwkvctl.data.convert.formats.base import sha256
from rwkvctl.data.convert.formats.volumes import Case, Volume, check_labels, check_unit_range, last_two
from rwkvctl.data.convert.sources import RawFile

WINDOW = (-125.0, 275.0)
"""Hounsfield units of soft tissue that become [0, 1], for all cases the same."""


@dataclass(frozen=True)
class LabelOrder:
    """A numbering of the organs: its name and (stored label, TransUNet's id); labels that are not listed are 0."""

    name: str
    pairs: tuple[tuple[int, int], ...]
    highest: int

    def __str__(self) -> str:
        return ", ".join(f"{stored}: {own}" for stored, own in self.pairs)

    @property
    def all_pairs(self) -> tuple[tuple[int, int], ...]:
        """(stored label, TransUNet's id) of every label, 0 for what TransUNet leaves out."""
        own = dict(self.pairs)
        return tuple((stored, own.get(stored, 0)) for stored in range(self.highest + 1))

    def renumber(self, labels: NDArray[Any]) -> NDArray[np.uint8]:
        table = np.array([own for _, own in self.all_pairs], np.uint8)
        return table[labels.astype(np.uint8)]


# Organ by organ: spleen, right kidney, left kidney, gallbladder, liver, stomach, aorta, pancreas.
_OWN = (7, 4, 3, 2, 5, 8, 1, 6)
TRANSUNET = LabelOrder("TransUNet", tuple((i, i) for i in range(1, 9)), 8)
SAMED = LabelOrder("SAMed", tuple(zip((1, 2, 3, 4, 5, 6, 7, 8), _OWN, strict=True)), 8)
CASCADE = LabelOrder("CASCADE", tuple(zip((1, 2, 3, 4, 6, 7, 8, 5), _OWN, strict=True)), 8)
BTCV = LabelOrder("BTCV", tuple(zip((1, 2, 3, 4, 6, 7, 8, 11), _OWN, strict=True)), 13)
LIVER, LIVER_OF_CASCADE = 5, 6
AORTA, SPLEEN = 1, 7  # in TransUNet's order


def label_order(files: Sequence[RawFile]) -> LabelOrder:
    """Which of the public numberings preprocessed files have, from the organs' volumes.

    Labels above 8: all 13 of BTCV. Else the largest organ is the liver, 6 in CASCADE's order and 5 in the others;
    of these, the spleen, which is larger than the aorta, is 7 in TransUNet's and 1 in SAMed's order.
    """
    counts = np.zeros(256, np.int64)
    for file in files:
        labels = read_labels(file)
        check_labels(file, labels, range(BTCV.highest + 1))
        counts += np.bincount(labels.astype(np.uint8).ravel(), minlength=256)
    if counts[TRANSUNET.highest + 1 :].any():
        return BTCV
    largest = int(np.argmax(counts[1:])) + 1
    if largest == LIVER_OF_CASCADE:
        return CASCADE
    if largest != LIVER:
        raise BadFile(f"{files[0]}: the largest organ has label {largest}; the liver is 5 or 6 in every known order")
    return TRANSUNET if counts[SPLEEN] > counts[AORTA] else SAMED


@dataclass(frozen=True)
class Preprocessed:
    """Reads a case of TransUNet's files: one h5 volume, or all its npz slices."""

    order: LabelOrder

    def __call__(self, case: Case) -> Volume:
        read = [read_arrays(file) for file in case.files]
        if len(read) == 1 and read[0].image.ndim == 3:
            image, labels = read[0].image, read[0].labels
        else:
            image, labels = (np.stack(arrays) for arrays in zip(*((r.image, r.labels) for r in read), strict=True))
        check_unit_range(case.files[0], image)
        check_labels(case.files[0], labels, range(self.order.highest + 1))
        sources = {last_two(file): own.sha256 for file, own in zip(case.files, read, strict=True)}
        meta = {"orig_mode": str(image.dtype), "mask_rule": f"labels of {self.order.name}"}
        return Volume(image.astype(np.float32), self.order.renumber(labels), sources, meta, by_slice=len(read) > 1)


class Arrays(NamedTuple):
    """A file's image and labels, (H, W) or (D, H, W), and its SHA-256."""

    image: NDArray[Any]
    labels: NDArray[Any]
    sha256: str


def read_arrays(file: RawFile) -> Arrays:
    """An npz slice or an h5 volume; BadFile when it is damaged or image and labels differ in shape."""
    import h5py

    data = file.read()
    ndim = 3 if file.suffix == ".h5" else 2
    try:
        if ndim == 3:
            with h5py.File(io.BytesIO(data), "r") as opened:
                image, labels = opened["image"][()], opened["label"][()]
        else:
            with np.load(io.BytesIO(data), allow_pickle=False) as opened:
                image, labels = opened["image"], opened["label"]
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, zipfile.BadZipFile) as error:
        brief = str(error).strip("'\"").split("\n")[0][:80]
        raise BadFile(f"{file}: not a file with image and label ({brief}); replace it") from error
    if image.ndim != ndim or image.shape != labels.shape:
        raise BadFile(f"{file}: image {image.shape}, label {labels.shape}; both must be {ndim}-dimensional and equal")
    return Arrays(image, labels, sha256(data))


def read_labels(file: RawFile) -> NDArray[Any]:
    """The labels alone, which is much less than the image."""
    import h5py

    if file.suffix != ".h5":
        return read_arrays(file).labels
    try:
        with file.open() as stream, h5py.File(stream, "r") as opened:
            return opened["label"][()]
    except (OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise BadFile(f"{file}: not an h5 file with image and label; replace it") from error


def depth(file: RawFile) -> int:
    """The number of slices of an h5 volume, from its header."""
    import h5py

    try:
        with file.open() as stream, h5py.File(stream, "r") as opened:
            return int(opened["label"].shape[0])
    except (OSError, KeyError, IndexError, RuntimeError) as error:
        raise BadFile(f"{file}: not an h5 file with image and label; replace it") from error
