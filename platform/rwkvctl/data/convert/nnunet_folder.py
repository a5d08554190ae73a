"""A prepared data set as a raw folder of nnU-Net v2, `DatasetNNN_NAME`.

    dataset.json                          channel_names, labels, numTraining, file_ending, what the values are
    splits_final.json                     which cases of imagesTr train and validate, by fold
    imagesTr/CASE_0000.nii.gz (.png)      training and validation; labelsTr/CASE.nii.gz (.png)
    imagesTs/CASE_0000.nii.gz (.png)      the test part; labelsTs/CASE.nii.gz (.png)

A volume comes back on the grid of its file, put together of its slices where those are the samples. Its numbers are the
scanner's where every sample knows how it was scaled, else those that are stored.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rwkvctl.base import files
from rwkvctl.base.errors import UserError
from rwkvctl.data.convert.nnunet_writers import Case, Progress, writer_for
from rwkvctl.data.store.case_reader import reader_for
from rwkvctl.data.store.manifest import Manifest
from rwkvctl.data.store.reader import Reader
from rwkvctl.data.store.splits import PARTS, folds_of

BACKGROUND, IGNORE = "background", "ignore"
"""nnU-Net's names of label 0, and of the pixels that count for nothing, whose label is the one after the last class."""
MOST_ID = 999
_SEGMENTATION = "_seg"
"""nnU-Net keeps the masks of CASE as CASE_seg among its preprocessed files, and takes no such name for a case."""


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
    writer = writer_for(manifest, reader, [*training.values(), *test.values()])
    with _folder(target) as folder:
        writer.write(folder, "Tr", list(training.values()), progress)
        writer.write(folder, "Ts", list(test.values()), progress)
        folds = [{part: parts[part] for part in PARTS[:2]} for parts in names]
        if all(parts["val"] for parts in folds):
            files.write_json(folder / "splits_final.json", folds)
        else:
            folds = []
        ignored = {IGNORE: len(manifest.classes)} if writer.ignored else {}
        described = {
            "name": manifest.dataset,
            "description": f"{manifest.dataset} {manifest.fingerprint}, split {name}; {writer.values}",
            "licence": manifest.content.source.licence,
            "reference": manifest.content.source.citation or "",
            "channel_names": writer.channels,
            "labels": labels | ignored,
            **(
                {"regions_class_order": [own.value for own in regions]} if (regions := manifest.content.regions) else {}
            ),
            "numTraining": len(training),
            "file_ending": writer.ending,
        }
        text = json.dumps(described, indent=2, ensure_ascii=False)  # not sorted: nnU-Net goes by the regions' order
        files.write_bytes(folder / "dataset.json", text.encode())
    both = len(training.keys() & test.keys())
    return Exported(
        str(target), name, len(training), len(test), len(folds), writer.values, both, writer.without_spacing
    )


# What is to be exported ----------------------------------------------------------------------------------------------


def _labels(manifest: Manifest) -> dict[str, int | list[int]]:
    """Name -> label, or the labels of a region. Class 0 is nnU-Net's background whatever it is called here."""
    if manifest.task != "segmentation":
        raise UserError(f"{manifest.location}: is for {manifest.task}, and nnU-Net segments; give a set with masks")
    if manifest.regions:
        single = {name: own[0] if len(own) == 1 else list(own) for name, own in manifest.regions.items()}
        return {BACKGROUND: 0, **single}
    labels: dict[str, int | list[int]]
    labels = {BACKGROUND: 0, **{name: number for number, name in enumerate(manifest.classes) if number}}
    taken = next((name for name in manifest.classes[1:] if name in (BACKGROUND, IGNORE)), None)
    if taken or len(labels) != len(manifest.classes):
        why = f"{taken!r} means something of its own to nnU-Net" if taken else "two have one name"
        raise UserError(f"{manifest.location}: its classes cannot be nnU-Net's, {why}; prepare it with other --classes")
    return labels


def _order(manifest: Manifest) -> dict[str, list[int]]:
    """What regions are written as, one over the other."""
    regions = manifest.content.regions or ()
    return {"regions_class_order": [own.value for own in regions]} if regions else {}


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


def _cases(manifest: Manifest, reader: Reader, ids: Sequence[str]) -> dict[str, Case]:
    """Sample -> the case that it is, or is a slice of."""
    if manifest.image_kind == "rgb8":
        return {key: Case(key, (row,), {}) for row, key in enumerate(ids)}
    metas = [_short(reader.meta(row)) for row in range(len(ids))]
    slices: dict[str, list[int]] = {}
    for row, meta in enumerate(metas):
        if meta["z"] is not None:
            slices.setdefault(meta["case_id"], []).append(row)
    stacks = {}
    for name, rows in slices.items():
        rows.sort(key=lambda row: metas[row]["z"])
        _refuse_gaps(manifest, name, [metas[row] for row in rows])
        stacks[name] = Case(name, tuple(rows), metas[rows[0]])
    return {
        key: Case(key, (row,), meta) if meta["z"] is None else stacks[meta["case_id"]]
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


def _names(by_id: Mapping[str, Case], ids: Sequence[str]) -> list[str]:
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
