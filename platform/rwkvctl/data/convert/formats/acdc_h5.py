"""ACDC as the h5 files that RWKV-UNet and WSL4MIS use, and SSL4MIS with other names and frame numbers.

    ACDC_training_slices/patientNNN_frameFF_slice_Z.h5     (H, W)       1902 files
    ACDC_training_volumes/patientNNN_frameFF.h5            (D, H, W)     200 files

Each has `image` (float in [0, 1]) and `label` (0..3); `scribble` is not used. The files hold no spacing. SSL4MIS counts
slices from 1 and calls the two frames 01 and 02, so its ids are not those of WSL4MIS.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwkvctl.base.errors import BadFile
from rwkvctl.data.convert.discover import Problems
from rwkvctl.data.convert.formats import acdc_nifti
from rwkvctl.data.convert.formats.base import Dataset, Options, Plan, Sample, sha256
from rwkvctl.data.convert.formats.volumes import (
    Case,
    Volume,
    check_labels,
    check_unit_range,
    content_hash,
    last_two,
    volume_sample,
)
from rwkvctl.data.convert.sources import RawFile, Source
from rwkvctl.data.images import intensity

FRAMES_A_PATIENT = 2  # end of diastole and of systole

NAME = re.compile(r"patient(\d{3})_frame(\d{2})(?:_slice_(\d+))?\.h5", re.IGNORECASE)


@dataclass
class Frame:
    """One volume's file and those of its slices."""

    patient: int
    frame: int
    volume: RawFile | None = None
    slices: dict[int, RawFile] = field(default_factory=dict)
    depth: int = 0

    @property
    def key(self) -> str:
        return f"acdc_p{self.patient:03d}_f{self.frame:02d}"

    @property
    def files(self) -> list[RawFile]:
        return [self.volume, *self.slices.values()] if self.volume else [*self.slices.values()]


@dataclass(frozen=True)
class Plane:
    """A slice of a frame, to be a training sample."""

    frame: Frame
    z: int

    @property
    def key(self) -> str:
        return f"{self.frame.key}_z{self.z:02d}"

    @property
    def files(self) -> list[RawFile]:
        return [self.frame.slices[self.z]]


def plan(source: Source, options: Options, problems: Problems, dataset: Dataset, part_of: Callable[[int], str]) -> Plan:
    frames = _find(source, problems)
    warnings = _check_completeness(frames, options.allow_partial, problems)
    parts: dict[str, list[Any]] = {"train": [], "val": [], "test": []}
    for frame in frames:
        part = part_of(frame.patient)
        if part == "train":
            parts[part] += [Plane(frame, z) for z in sorted(frame.slices)]
        elif frame.volume:
            parts[part].append(frame)
    return Plan(
        form="h5",
        task="segmentation",
        classes=dataset.classes,
        image_kind="float",
        parts=parts,
        read=_Reader(options.dataset, len(dataset.classes)),
        make_splits=lambda ids, groups: {},
        mask_rule="value",
        intensity=intensity.rule(*acdc_nifti.WINDOW),  # done already in the source
        orientation=acdc_nifti.ORIENTATION,
        warnings=warnings,
    )


def _find(source: Source, problems: Problems) -> list[Frame]:
    frames: dict[tuple[int, int], Frame] = {}
    for file in source.files:
        match = NAME.fullmatch(file.name)
        if not match:
            continue
        key = int(match[1]), int(match[2])
        frame = frames.setdefault(key, Frame(*key))
        twin = frame.volume if match[3] is None else frame.slices.get(int(match[3]))
        if twin:
            problems.add(f"{file}: has the same name as {twin}; keep one of them")
        elif match[3] is None:
            frame.volume = file
        else:
            frame.slices[int(match[3])] = file
    if not any(0 in frame.slices for frame in frames.values()):  # SSL4MIS
        for frame in frames.values():
            frame.slices = {z - 1: file for z, file in frame.slices.items()}
    return [frames[key] for key in sorted(frames)]


def _check_completeness(frames: list[Frame], allow_partial: bool, problems: Problems) -> list[str]:
    """Warnings for what is missing. Missing whole patients are a warning; anything missing inside one is a problem
    unless the user allows it, because a patient without some slices would go unnoticed in every number."""
    missing: list[str] = []
    for frame in frames:
        if frame.volume is None:
            missing.append(f"{frame.key}: its volume patient{frame.patient:03d}_frame{frame.frame:02d}.h5 is missing")
            continue
        try:
            frame.depth = _depth(frame.volume)
        except BadFile as error:
            problems.add(str(error))
            continue
        gone = sorted(set(range(frame.depth)) - set(frame.slices))
        extra = sorted(set(frame.slices) - set(range(frame.depth)))
        if gone:
            missing.append(
                f"{frame.volume}: {len(gone)} of its {frame.depth} slices are missing, first slice_{gone[0]}"
            )
        if extra:
            problems.add(f"{frame.slices[extra[0]]}: its volume has only {frame.depth} planes; remove it")
    patients = sorted({frame.patient for frame in frames})
    for patient in patients:
        own = [frame for frame in frames if frame.patient == patient]
        if len(own) != FRAMES_A_PATIENT:
            missing.append(f"patient{patient:03d}: {len(own)} frames, {FRAMES_A_PATIENT} were expected")
    if not allow_partial:
        for what in missing:
            problems.add(f"{what}; complete the patient, or accept it with --allow-partial")
    whole = [] if len(patients) == 100 else [f"partial source: {len(patients)} of 100 patients"]
    return whole + missing


def _depth(volume: RawFile) -> int:
    import h5py

    try:
        with volume.open() as stream, h5py.File(stream, "r") as file:
            shape = file["label"].shape
    except (OSError, KeyError) as error:
        raise BadFile(f"{volume}: not an h5 file with image and label ({_brief(error)}); replace it") from error
    if len(shape) != 3:
        raise BadFile(f"{volume}: label has shape {shape}, a volume is (D, H, W); replace it")
    return int(shape[0])


class _Reader:
    """`Plan.read`. Keeps the last volume, because its slices are compared with it one after the other."""

    def __init__(self, dataset: str, num_classes: int):
        self._dataset, self._num_classes = dataset, num_classes
        self._volume_of: Frame | None = None
        self._volume: _File | None = None
        self._hashed, self._hash = "", ""

    def __call__(self, part: str, item: Frame | Plane) -> Sample:
        return self._read_plane(part, item) if isinstance(item, Plane) else self._read_volume(part, item)

    def _read_plane(self, part: str, plane: Plane) -> Sample:
        path = plane.frame.slices[plane.z]
        file = _load(path, ndim=2)
        if plane.frame.volume:
            volume = self._volume_for(plane.frame)
            same = np.array_equal(file.image, volume.image[plane.z]) and np.array_equal(
                file.label, volume.label[plane.z]
            )
            if not same:
                raise BadFile(f"{path}: differs from plane {plane.z} of {plane.frame.volume.name}; replace one of them")
        return self._sample(part, plane.key, plane.frame, file, {path: file.sha256}, z=plane.z)

    def _read_volume(self, part: str, frame: Frame) -> Sample:
        """The whole volume; its slices are compared with it too, so that val and test are checked like train."""
        volume = self._volume_for(frame)
        sources = {volume.raw: volume.sha256}
        for z in sorted(frame.slices):
            sources[frame.slices[z]] = self._read_plane(part, Plane(frame, z)).meta["orig_sha256"]
        return self._sample(part, frame.key, frame, volume, sources, z=None)

    def _volume_for(self, frame: Frame) -> _File:
        if self._volume_of is not frame or self._volume is None:
            assert frame.volume is not None
            self._volume_of, self._volume = frame, _load(frame.volume, ndim=3)
        return self._volume

    def _volume_hash(self, frame: Frame) -> str:
        if self._hashed != frame.key:
            self._hashed, self._hash = frame.key, content_hash(self._volume_for(frame).image)
        return self._hash

    def _sample(
        self, part: str, key: str, frame: Frame, file: _File, sources: Mapping[RawFile, str], z: int | None
    ) -> Sample:
        case = Case(frame.key, tuple(frame.files), frame.depth, f"patient{frame.patient:03d}", z_digits=2)
        named = {last_two(raw): digest for raw, digest in sources.items()}
        meta = {"z": z, "n_slices": frame.depth or None, "orig_mode": str(file.image.dtype), "mask_rule": "value"}
        if frame.volume:
            meta["volume_sha256"] = self._volume_hash(frame)
        volume = Volume(file.image, file.label, named, meta)
        return volume_sample(self._dataset, part, key, case, volume, self._num_classes)


@dataclass(frozen=True)
class _File:
    raw: RawFile
    sha256: str
    image: NDArray[np.float32]
    label: NDArray[np.uint8]


def _load(raw: RawFile, ndim: int) -> _File:
    import h5py

    data = raw.read()
    try:
        with h5py.File(io.BytesIO(data), "r") as file:
            image, label = file["image"][()], file["label"][()]
    except (OSError, KeyError, TypeError, RuntimeError) as error:
        raise BadFile(f"{raw}: not an h5 file with image and label ({_brief(error)}); replace it") from error
    if image.ndim != ndim or image.shape != label.shape:
        raise BadFile(f"{raw}: image {image.shape} and label {label.shape}; both must be {ndim}-dimensional and equal")
    check_unit_range(raw, image)
    check_labels(raw, label, range(4))
    return _File(raw, sha256(data), image.astype(np.float32), label.astype(np.uint8))


def _brief(error: Exception) -> str:
    return str(error).strip("'\"").split("\n")[0][:80]
