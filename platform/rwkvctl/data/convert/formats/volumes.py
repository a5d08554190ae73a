"""What the formats of volumes share: a case becomes one sample, or one a slice."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwkvctl.base.errors import BadFile
from rwkvctl.data.convert.formats.base import Sample, count_pixels, encode_npy
from rwkvctl.data.convert.sources import RawFile
from rwkvctl.data.images import intensity
from rwkvctl.data.store import same_volume
from rwkvctl.data.store.writer import Limits

PLANES = Limits(samples=192, bytes=1 << 62)
"""Of slices of 512 x 512 this makes 250 MB. The sizes of their files say nothing: all are in one file a case."""
WHOLE = Limits(samples=1)
"""A volume has up to 260 MB."""


@dataclass(frozen=True)
class Case:
    """A volume and where its image and labels lie; how the files are read is its format's business."""

    key: str
    files: tuple[RawFile, ...]
    depth: int
    patient: str
    z_digits: int = 3


@dataclass(frozen=True)
class Plane:
    """A slice of a case, to be a training sample."""

    case: Case
    z: int

    @property
    def key(self) -> str:
        return f"{self.case.key}_z{self.z:0{self.case.z_digits}d}"

    @property
    def files(self) -> tuple[RawFile, ...]:
        return self.case.files


@dataclass(frozen=True)
class Volume:
    """A case that was read: image (D, H, W) float32, ids (D, H, W) uint8, path -> SHA-256 of its files, what the
    samples' json says of its grid and values, and whether there is a file a slice."""

    image: NDArray[np.float32]
    ids: NDArray[np.uint8]
    sources: Mapping[str, str]
    meta: Mapping[str, Any]
    by_slice: bool = False


Load = Callable[[Any], Volume]
"""Of a case."""


def planes(cases: Iterable[Case]) -> list[Plane]:
    return [Plane(case, z) for case in cases for z in range(case.depth)]


class VolumeReader:
    """`Plan.read` of cases and planes. Keeps the last volume, because its slices are asked for one after the other."""

    def __init__(self, dataset: str, num_classes: int, load: Load):
        self.dataset, self.num_classes, self.load = dataset, num_classes, load
        self._last: tuple[str, Volume] | None = None

    def __call__(self, part: str, item: Case | Plane) -> Sample:
        case = item.case if isinstance(item, Plane) else item
        if self._last is None or self._last[0] != case.key:
            self._last = None  # before the next one is in memory
            loaded = self.load(case)
            meta = {**loaded.meta, "volume_sha256": content_hash(loaded.image)}
            self._last = case.key, replace(loaded, meta=meta)
        volume = self._last[1]
        if len(volume.image) != case.depth:
            raise BadFile(f"{case.files[0]}: has {len(volume.image)} slices, its header says {case.depth}")
        if isinstance(item, Plane):
            z = item.z
            sources = volume.sources
            if volume.by_slice:
                sources = dict([list(sources.items())[z]])
            volume = Volume(volume.image[z], volume.ids[z], sources, {**volume.meta, "z": z})
        sample = volume_sample(self.dataset, part, item.key, case, volume, self.num_classes)
        first = not isinstance(item, Plane) or item.z == 0
        return replace(sample, look=same_volume.packed(same_volume.look(self._last[1].image))) if first else sample


def volume_sample(dataset: str, part: str, key: str, case: Case, volume: Volume, num_classes: int) -> Sample:
    """A volume, or a plane (H, W) of one, as a sample. The first of its files is the one that its json names."""
    image, ids = volume.image, volume.ids
    pixels = count_pixels(ids, num_classes)
    first, digest = next(iter(volume.sources.items()))
    meta = {
        "id": key,
        "dataset": dataset,
        "part": part,
        "case_id": case.key,
        "patient_id": case.patient,
        "group_id": case.patient,
        "z": None,
        "n_slices": case.depth,
        "orig_path": first,
        "orig_sha256": digest,
        "orig_size": list(ids.shape[-2:]),
        "spacing_mm": None,
        "classes_present": [int(c) for c in np.flatnonzero(pixels)],
        "labeled": True,
        **volume.meta,
    }
    members = {"image.npy": encode_npy(image), "mask.npy": encode_npy(ids)}
    return Sample(key, members, meta, dict(volume.sources), (ids.shape[-2], ids.shape[-1]), pixels)


def content_hash(image: NDArray[np.float32]) -> str:
    """SHA-256 of a stored volume's shape and values: the same for one scan under two names, packed or not, in whatever
    orientation its files are stored."""
    digest = hashlib.sha256(f"{image.shape}".encode())
    digest.update(np.ascontiguousarray(image, "<f4").data)
    return digest.hexdigest()


def scaled(file: RawFile, voxels: NDArray[Any], low: float, high: float) -> NDArray[np.float32]:
    """`intensity.scaled` of a file's voxels, of any shape; BadFile where it refuses them."""
    try:
        return intensity.scaled(voxels, low, high)
    except ValueError as error:
        raise BadFile(f"{file}: {error}; replace it") from error


def check_unit_range(file: RawFile, image: NDArray[Any]) -> None:
    """BadFile for values outside [0, 1], which a preprocessed image has."""
    if not np.isfinite(image).all() or image.min() < -1e-3 or image.max() > 1 + 1e-3:
        raise BadFile(f"{file}: image values {image.min():g}..{image.max():g}, expected [0, 1]; replace it")


def check_labels(file: RawFile, labels: NDArray[Any], known: Iterable[int]) -> None:
    """BadFile for values that are no label."""
    values, known = np.unique(labels), sorted(known)
    if not np.isin(values, known).all():
        raise BadFile(f"{file}: label values {values[:16].tolist()}, expected {known[0]}..{known[-1]}; replace it")


def last_two(file: RawFile) -> str:
    """The last two parts of a path: the same whatever folder or archive the user pointed at."""
    return "/".join(file.path.split("/")[-2:])
