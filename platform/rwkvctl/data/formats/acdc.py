"""ACDC (cardiac MR, 100 patients x 2 frames) as the h5 files that RWKV-UNet and WSL4MIS use.

    ACDC_training_slices/patientNNN_frameFF_slice_Z.h5     (H, W)       1902 files
    ACDC_training_volumes/patientNNN_frameFF.h5            (D, H, W)     200 files

Each has `image` (float in [0, 1]), `label` (0..3) and `scribble` (not used here). The files hold no spacing.
Training takes slices, validation and test take whole volumes. Dataset: Bernard et al., IEEE TMI 2018.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwkvctl.data.discover import Problems
from rwkvctl.data.formats.base import BadFile, Dataset, Options, Plan, Sample, count_pixels, encode_npy, sha256
from rwkvctl.data.sources import RawFile, Source
from rwkvctl.data.splits import Split, fixed
from rwkvctl.errors import UserError

CLASSES = ("background", "right ventricle", "myocardium", "left ventricle")
SPLIT = "wsl4mis_fold1_val21-30"
TEST_PATIENTS, VAL_PATIENTS, TRAIN_PATIENTS = range(1, 21), range(21, 31), range(31, 101)
FRAMES_A_PATIENT = 2  # end of diastole and of systole

DATASET = Dataset(
    name="acdc",
    title="ACDC, cardiac MR of 100 patients at two moments",
    task="segmentation",
    classes=CLASSES,
    expected={"slices": 1902, "volumes": 200},
    forms={"h5": "ACDC_training_slices/patientNNN_frameFF_slice_Z.h5, ACDC_training_volumes/patientNNN_frameFF.h5"},
    licence="research use",
    access="registration at CREATIS (https://www.creatis.insa-lyon.fr/Challenge/acdc); h5: WSL4MIS on GitHub",
    citation="Bernard et al., IEEE TMI 37(11), 2018",
)

_NAME = re.compile(r"patient(\d{3})_frame(\d{2})(?:_slice_(\d+))?\.h5")


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


def recognise(source: Source) -> str | None:
    return "h5" if any(_NAME.fullmatch(file.name) for file in source.files) else None


def plan(source: Source, options: Options, problems: Problems) -> Plan:
    """Find the files, check that every patient is whole, and lay out train slices, val and test volumes."""
    frames = _find(source, problems)
    warnings = _check_completeness(frames, options.allow_partial, problems)
    parts: dict[str, list[Any]] = {
        "train": [Plane(f, z) for f in frames if f.patient in TRAIN_PATIENTS for z in sorted(f.slices)],
        "val": [f for f in frames if f.patient in VAL_PATIENTS and f.volume],
        "test": [f for f in frames if f.patient in TEST_PATIENTS and f.volume],
    }
    warnings += [f"the source has no {part} patients" for part, items in parts.items() if not items]
    return Plan(
        form="h5",
        task="segmentation",
        classes=CLASSES,
        image_kind="float",
        parts=parts,
        read=_Reader(options.dataset),
        make_splits=_make_splits,
        mask_rule="value",
        intensity={"clip": None, "scale": "as in the source, [0, 1]"},
        warnings=warnings,
    )


def _make_splits(ids: Mapping[str, Sequence[str]], groups: Mapping[str, str]) -> dict[str, Split]:
    rule = "test: volumes of patients 1-20; val: volumes of 21-30; train: slices of 31-100"
    return {SPLIT: fixed(rule, **ids)}


def _find(source: Source, problems: Problems) -> list[Frame]:
    frames: dict[tuple[int, int], Frame] = {}
    for file in source.files:
        match = _NAME.fullmatch(file.name)
        if not match:
            continue
        key = int(match[1]), int(match[2])
        frame = frames.setdefault(key, Frame(*key))
        twin = frame.volume if match[3] is None else frame.slices.get(int(match[3]))
        if twin:
            problems.add(f"{file}: is there a second time, {twin}; keep one of them")
        elif match[3] is None:
            frame.volume = file
        else:
            frame.slices[int(match[3])] = file
    if not frames:
        raise UserError(
            f"{source}: no files patientNNN_frameFF.h5 here; give the folder that holds ACDC_training_slices "
            "and ACDC_training_volumes"
        )
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

    def __init__(self, dataset: str):
        self._dataset = dataset
        self._volume_of: Frame | None = None
        self._volume: _File | None = None

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

    def _sample(
        self, part: str, key: str, frame: Frame, file: _File, sources: Mapping[RawFile, str], z: int | None
    ) -> Sample:
        pixels = count_pixels(file.label, len(CLASSES))
        meta = {
            "id": key,
            "dataset": self._dataset,
            "part": part,
            "case_id": frame.key,
            "patient_id": f"patient{frame.patient:03d}",
            "group_id": f"patient{frame.patient:03d}",
            "z": z,
            "n_slices": frame.depth or None,
            "orig_path": _last_two(file.raw),
            "orig_sha256": file.sha256,
            "orig_size": list(file.label.shape[-2:]),
            "orig_mode": str(file.image.dtype),
            "spacing_mm": None,
            "classes_present": [int(c) for c in np.flatnonzero(pixels)],
            "mask_rule": "value",
            "labeled": True,
        }
        members = {"image.npy": encode_npy(file.image), "mask.npy": encode_npy(file.label)}
        named = {_last_two(raw): digest for raw, digest in sources.items()}
        return Sample(key, members, meta, named, (file.label.shape[-2], file.label.shape[-1]), pixels)


def _last_two(raw: RawFile) -> str:
    """The last two parts of its path: the same whatever folder or archive the user pointed at."""
    return "/".join(raw.path.split("/")[-2:])


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
    if not np.isfinite(image).all() or image.min() < -1e-3 or image.max() > 1 + 1e-3:
        raise BadFile(f"{raw}: image values {image.min():g}..{image.max():g}, expected [0, 1]; replace it")
    values = np.unique(label)
    if not np.isin(values, range(len(CLASSES))).all():
        raise BadFile(f"{raw}: label values {values[:8].tolist()}, expected 0..{len(CLASSES) - 1}; replace it")
    return _File(raw, sha256(data), image.astype(np.float32), label.astype(np.uint8))


def _brief(error: Exception) -> str:
    return str(error).strip("'\"").split("\n")[0][:80]
