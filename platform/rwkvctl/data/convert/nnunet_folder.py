"""A prepared data set as a raw folder of nnU-Net v2, `DatasetNNN_NAME`.

    dataset.json                          channel_names, labels, numTraining, file_ending, what the values are
    splits_final.json                     which cases of imagesTr train and validate, by fold
    imagesTr/CASE_0000.nii.gz (.png)      training and validation; labelsTr/CASE.nii.gz (.png)
    imagesTs/CASE_0000.nii.gz (.png)      the test part; labelsTs/CASE.nii.gz (.png)

A volume comes back on the grid of its file, put together of its slices where those are the samples. Its numbers are the
scanner's where every sample knows how it was scaled, else those that are stored.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwkvctl.base import files
from rwkvctl.base.errors import UserError
from rwkvctl.data.images import files as image_files
from rwkvctl.data.images import grid, nifti
from rwkvctl.data.store.case_reader import reader_for
from rwkvctl.data.store.manifest import Manifest
from rwkvctl.data.store.reader import Reader
from rwkvctl.data.store.splits import PARTS, folds_of

BACKGROUND, IGNORE = "background", "ignore"
"""nnU-Net's names of label 0, and of the pixels that count for nothing, whose label is the one after the last class."""
VOLUMES, IMAGES = ".nii.gz", ".png"
MOST_ID = 999
_SEGMENTATION = "_seg"
"""nnU-Net keeps the masks of CASE as CASE_seg among its preprocessed files, and takes no such name for a case."""
_NO_GRID = {"axes": "LPS", "origin": (0, 0, 0), "direction": (-1, 0, 0, 0, -1, 0, 0, 0, 1)}
"""Of a volume whose file told no grid."""

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Exported:
    """What was written; test_in_training: test cases that are validation cases, too, as in Synapse's usual split."""

    folder: str
    split: str
    training: int
    test: int
    folds: int
    values: str
    test_in_training: int
    without_spacing: int


@dataclass(frozen=True)
class _Case:
    """rows: of the reader, one a slice in their order, or that of the whole volume or image; meta: the first's json."""

    name: str
    rows: tuple[int, ...]
    meta: Mapping[str, Any] = field(repr=False)


def export(
    data: str | Path, out: Path, number: int, *, split: str | None = None, progress: Progress | None = None
) -> Exported:
    """Write `out`/DatasetNNN_NAME, which appears whole or not at all. `split` is a split, or what its folds are called
    without `_foldN`; the default split without it. UserError for what nnU-Net cannot take."""
    manifest = Manifest.load(data)
    labels = _labels(manifest)
    target = _target(out, number, manifest.dataset)
    name = split or manifest.default_split
    lists = _lists(manifest, name)
    ids = list(dict.fromkeys(key for parts in lists for part in PARTS for key in parts[part]))
    reader = reader_for(manifest, ids)
    by_id = _cases(manifest, reader, ids)
    names = [{part: _names(by_id, parts[part]) for part in PARTS} for parts in lists]
    training = {by_id[key].name: by_id[key] for parts in lists for part in PARTS[:2] for key in parts[part]}
    test = {by_id[key].name: by_id[key] for key in lists[0]["test"]}
    _refuse_names(manifest, [*training, *test])
    writer = _writer(manifest, reader, [*training.values(), *test.values()])
    with _folder(target) as folder:
        writer.write(folder, "Tr", list(training.values()), progress)
        writer.write(folder, "Ts", list(test.values()), progress)
        folds = [{part: parts[part] for part in PARTS[:2]} for parts in names]
        if all(parts["val"] for parts in folds):
            files.write_json(folder / "splits_final.json", folds)
        else:
            folds = []
        ignored = {IGNORE: len(labels)} if writer.ignored else {}
        described = {
            "name": manifest.dataset,
            "description": f"{manifest.dataset} {manifest.fingerprint}, split {name}; {writer.values}",
            "licence": manifest.content.source.licence,
            "reference": manifest.content.source.citation or "",
            "channel_names": writer.channels,
            "labels": labels | ignored,
            "numTraining": len(training),
            "file_ending": writer.ending,
        }
        files.write_json(folder / "dataset.json", described)
    both = len(training.keys() & test.keys())
    return Exported(
        str(target), name, len(training), len(test), len(folds), writer.values, both, writer.without_spacing
    )


# What is to be exported ----------------------------------------------------------------------------------------------


def _labels(manifest: Manifest) -> dict[str, int]:
    """Name -> label. Class 0 is nnU-Net's background whatever it is called here."""
    if manifest.task != "segmentation":
        raise UserError(f"{manifest.location}: is for {manifest.task}, and nnU-Net segments; give a set with masks")
    labels = {BACKGROUND: 0, **{name: number for number, name in enumerate(manifest.classes) if number}}
    taken = next((name for name in manifest.classes[1:] if name in (BACKGROUND, IGNORE)), None)
    if taken or len(labels) != len(manifest.classes):
        why = f"{taken!r} means something of its own to nnU-Net" if taken else "two have one name"
        raise UserError(f"{manifest.location}: its classes cannot be nnU-Net's, {why}; prepare it with other --classes")
    return labels


def _target(out: Path, number: int, name: str) -> Path:
    """The new folder. nnU-Net knows a data set by its number, which must be the only one in `out`."""
    if not 1 <= number <= MOST_ID:
        raise UserError(f"--id {number}: give a number from 1 to {MOST_ID}")
    target = out / f"Dataset{number:03d}_{name}"
    if target.exists():
        raise UserError(f"{target}: is there already; remove it, or give another --out or --id")
    other = next(iter(sorted(out.glob(f"Dataset{number:03d}_*"))), None)
    if other:
        raise UserError(f"--id {number}: is that of {other}; give another one")
    return target


def _lists(manifest: Manifest, name: str) -> list[dict[str, list[str]]]:
    """The id lists of a split, or of each of its folds, which have one test part."""
    folds = [] if name in manifest.splits else folds_of(name, manifest.splits)
    lists = [manifest.split_ids(own) for own in folds or [name]]
    if any(parts["test"] != lists[0]["test"] for parts in lists):
        raise UserError(f"--split {name}: its folds have different test parts; export one of them, {folds[0]}")
    if not any(parts["train"] for parts in lists):
        raise UserError(f"{manifest.location}: split {name} has no train samples; give another --split")
    return lists


def _cases(manifest: Manifest, reader: Reader, ids: Sequence[str]) -> dict[str, _Case]:
    """Sample -> the case that it is, or is a slice of."""
    if manifest.image_kind == "rgb8":
        return {key: _Case(key, (row,), {}) for row, key in enumerate(ids)}
    metas = [_short(reader.meta(row)) for row in range(len(ids))]
    slices: dict[str, list[int]] = {}
    for row, meta in enumerate(metas):
        if meta["z"] is not None:
            slices.setdefault(meta["case_id"], []).append(row)
    stacks = {}
    for name, rows in slices.items():
        rows.sort(key=lambda row: metas[row]["z"])
        _refuse_gaps(manifest, name, [metas[row] for row in rows])
        stacks[name] = _Case(name, tuple(rows), metas[rows[0]])
    return {
        key: _Case(key, (row,), meta) if meta["z"] is None else stacks[meta["case_id"]]
        for row, (key, meta) in enumerate(zip(ids, metas, strict=True))
    }


def _short(meta: Mapping[str, Any]) -> dict[str, Any]:
    """What of a sample's json is needed here: there is one for each slice of a data set."""
    wanted = ("axes", "orientation", "origin", "direction", "spacing_mm", "intensity", "orig_mode", "n_slices")
    known = {name: meta[name] for name in wanted if meta.get(name) is not None}
    return {"z": meta.get("z"), "case_id": meta.get("case_id"), **known}


def _refuse_gaps(manifest: Manifest, name: str, metas: Sequence[Mapping[str, Any]]) -> None:
    first, count = metas[0]["z"], metas[0].get("n_slices", len(metas))
    if [meta["z"] for meta in metas] != list(range(first, first + count)):
        raise UserError(
            f"{manifest.location}: {len(metas)} of the {count} slices of {name} are here, and nnU-Net takes whole "
            "volumes; prepare the data set from all of them"
        )


def _names(by_id: Mapping[str, _Case], ids: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(by_id[key].name for key in ids))


def _refuse_names(manifest: Manifest, names: Sequence[str]) -> None:
    bad = next((name for name in names if name.endswith(_SEGMENTATION)), None)
    if bad:
        raise UserError(
            f"{manifest.location}: nnU-Net takes no case whose name ends in {_SEGMENTATION} ({bad}); rename the files "
            "and prepare the data set again"
        )


# Writing ------------------------------------------------------------------------------------------------------------


@contextmanager
def _folder(target: Path) -> Iterator[Path]:
    """A folder beside `target` that takes its name when the block ends well, and is removed otherwise."""
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        for name in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
            (temporary / name).mkdir(parents=True)
        yield temporary
        temporary.rename(target)
        files.fsync_directory(target.parent)
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error.strerror}); give another --out") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


class _Writer:
    """Writes cases as nnU-Net names them. ignored: whether a mask so far had pixels that count for nothing."""

    ending: str
    channels: dict[str, str]
    values: str
    without_spacing = 0

    def __init__(self, manifest: Manifest, reader: Reader):
        self.manifest, self.reader, self.ignored = manifest, reader, False

    def write(self, folder: Path, part: str, cases: Sequence[_Case], progress: Progress | None) -> None:
        for done, case in enumerate(cases, 1):
            image = folder / f"images{part}" / f"{case.name}_0000{self.ending}"
            self.pair(case, image, folder / f"labels{part}" / f"{case.name}{self.ending}")
            if progress:
                progress(f"images{part}", done, len(cases))

    def pair(self, case: _Case, image: Path, labels: Path) -> None:
        raise NotImplementedError

    def ids(self, row: int) -> NDArray[np.uint8]:
        """The labels of a sample, with those that count for nothing after the last class."""
        ids = self.reader.mask(row)
        ignored = ids == self.manifest.ignore_index
        if ignored.any():
            self.ignored = True
            ids[ignored] = len(self.manifest.classes)
        return ids


class _Images(_Writer):
    """Photographs: one colour PNG, which nnU-Net reads as three channels."""

    ending, channels = IMAGES, {"0": "R", "1": "G", "2": "B"}
    values = "8-bit colours as they are stored"

    def pair(self, case: _Case, image: Path, labels: Path) -> None:
        (row,) = case.rows
        image.write_bytes(image_files.encode_png(self.reader.image(row)))
        labels.write_bytes(image_files.encode_png(self.ids(row)))


class _Volumes(_Writer):
    ending = VOLUMES

    def __init__(self, manifest: Manifest, reader: Reader, cases: Sequence[_Case]):
        super().__init__(manifest, reader)
        window = (manifest.content.intensity or {}).get("clip", ())
        # nnU-Net takes CT's numbers to be on one scale, and brings every other volume to its own mean and deviation.
        self.channels = {"0": "scan" if not window or any(isinstance(bound, str) for bound in window) else "CT"}
        self.unscale = all(_clip(case.meta) for case in cases)
        self.values = "the scanner's numbers" if self.unscale else "numbers as they are stored, scaled to 0..1"
        if len(window) == 2:
            self.values += f", clipped to {_text(window[0])}..{_text(window[1])}"
        self.without_spacing = sum("spacing_mm" not in case.meta for case in cases)

    def pair(self, case: _Case, image: Path, labels: Path) -> None:
        voxels = self._stacked([self.reader.image(row) for row in case.rows])
        if self.unscale:
            voxels = _unscaled(voxels, case.meta)
        ids = self._stacked([self.ids(row) for row in case.rows])
        stored = self.manifest.content.orientation
        place = {**_NO_GRID, "orientation": stored or "itk", "spacing_mm": (1, 1, 1), **case.meta}
        affine = grid.affine_of(place)
        for path, array in ((image, voxels), (labels, ids)):
            array = grid.turned_back(array, place)
            with path.open("wb") as file:
                nifti.write(file, nifti.header_of(affine, array.shape), array, gzipped=True)

    @staticmethod
    def _stacked(arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """(D, H, W) of a whole volume, or of its slices (H, W)."""
        return arrays[0] if arrays[0].ndim == 3 else np.stack(arrays)


def _writer(manifest: Manifest, reader: Reader, cases: Sequence[_Case]) -> _Writer:
    if manifest.image_kind == "rgb8":
        return _Images(manifest, reader)
    return _Volumes(manifest, reader, cases)


def _clip(meta: Mapping[str, Any]) -> tuple[float, float] | None:
    """The two numbers that a sample's values were clipped to, where its json tells them."""
    clip = (meta.get("intensity") or {}).get("clip", ())
    return (float(clip[0]), float(clip[1])) if len(clip) == 2 and all(type(n) in (int, float) for n in clip) else None


def _text(bound: float | str) -> str:
    return bound if isinstance(bound, str) else f"{bound:g}"


def _unscaled(volume: NDArray[np.float32], meta: Mapping[str, Any]) -> NDArray[np.float32]:
    """The inverse of `intensity.scaled`; whole numbers where the scan's were."""
    low, high = _clip(meta) or (0.0, 1.0)
    values = volume * np.float32(high - low) + np.float32(low)
    if str(meta.get("orig_mode")).startswith(("int", "uint")):
        np.rint(values, out=values)
    return values
