"""ImageNet-1K in the four forms in which people have it.

    tars      ILSVRC2012_img_train.tar (1000 tars inside), ILSVRC2012_img_val.tar, ILSVRC2012_devkit_t12.tar.gz
    folder    train/nXXXXXXXX/*.JPEG, val/nXXXXXXXX/*.JPEG or a flat val/ with the devkit or Kaggle's csv
    parquet   data/train-00000-of-00294.parquet, data/validation-00000-of-00014.parquet (Hugging Face)
    timm      imagenet1k-train-0000.tar ..., imagenet1k-validation-00.tar, _info.json: taken over as they are

A class's number is the rank of its wnid among the thousand. The numbers of the devkit (ILSVRC2012_ID) are others.
"""

from __future__ import annotations

import csv
import importlib.util
import io
import re
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from rwkvctl.base.errors import BadFile, UserError
from rwkvctl.data.convert import discover
from rwkvctl.data.convert.discover import Problems
from rwkvctl.data.convert.formats import imagenet_packed
from rwkvctl.data.convert.formats.base import Dataset, Options, Plan
from rwkvctl.data.convert.formats.photos import LIMITS, Photo, PhotoReader, official_splits, shuffled
from rwkvctl.data.convert.sources import RawFile, Source, natural_key
from rwkvctl.data.store.writer import Limits


@cache
def wnids() -> dict[str, int]:
    """wnid -> class number, in order. timm ships the list; importing timm for it would take seconds."""
    spec = importlib.util.find_spec("timm")
    assert spec is not None
    assert spec.submodule_search_locations
    listed = Path(spec.submodule_search_locations[0], "data", "_info", "imagenet_synsets.txt").read_text().split()
    assert listed == sorted(set(listed))
    return {wnid: number for number, wnid in enumerate(listed)}


DATASET = Dataset(
    name="imagenet",
    title="ImageNet-1K (ILSVRC 2012)",
    task="classification",
    classes=tuple(wnids()),
    expected={"train": 1_281_167, "val": 50_000},
    forms={
        "tars": "ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar, ILSVRC2012_devkit_t12.tar.gz",
        "folder": "train/WNID/*.JPEG, val/WNID/*.JPEG, or flat val/ with devkit or LOC_val_solution.csv (Kaggle)",
        "parquet": "data/train-*-of-00294.parquet, data/validation-*-of-00014.parquet (ILSVRC/imagenet-1k)",
        "timm": "imagenet1k-train-*.tar, imagenet1k-validation-*.tar (timm/imagenet-1k-wds)",
    },
    licence="non-commercial research, no redistribution",
    access="https://image-net.org, https://huggingface.co/datasets/ILSVRC/imagenet-1k, Kaggle",
    citation="Russakovsky et al., IJCV 115(3), 2015",
)
VAL_A_CLASS = 50
VAL_LIMITS = Limits(samples=782, bytes=LIMITS.bytes)  # 64 shards

_TRAIN = re.compile(r"(n\d{8})_(\d+)\.jpe?g", re.IGNORECASE)
_VAL = re.compile(r"ILSVRC2012_val_(\d{8})\.jpe?g", re.IGNORECASE)
_WNID = re.compile(r"n\d{8}")


def recognise(source: Source) -> str | None:
    for form, name in imagenet_packed.NAMES.items():
        if any(name.fullmatch(file.name) for file in source.top):
            return form
    train = next((file for file in source.files if _TRAIN.fullmatch(file.name)), None)
    return None if train is None else "folder" if train.kind != "tar" else "tars"


def plan(source: Source, options: Options, problems: Problems) -> Plan:
    form = recognise(source)
    classes = DATASET.classes
    reader = PhotoReader(options.dataset, classes)
    if form == "timm":
        return imagenet_packed.plan_timm(source, reader, _check_counts(source, options, problems), problems)
    if form == "parquet":
        return imagenet_packed.plan_parquet(source, reader, _check_counts(source, options, problems), problems)
    if form is None:
        raise UserError(
            f"{source}: no ImageNet here (nXXXXXXXX_N.JPEG, ILSVRC2012_img_train.tar, train-*.parquet, "
            "imagenet1k-train-*.tar); for other images with classes use the format imagefolder"
        )
    train, val = _list(source, problems)
    warnings = _check_counts(source, options, problems)(
        {"train": len(train), "val": len(val)}, [photo.label for photo in val]
    )
    return Plan(
        form=form,
        task="classification",
        classes=classes,
        image_kind="rgb8",
        parts={"train": shuffled(train), "val": val},
        read=reader,
        make_splits=official_splits,
        warnings=warnings,
        limits={"train": LIMITS, "val": VAL_LIMITS},
    )


def _check_counts(source: Source, options: Options, problems: Problems) -> imagenet_packed.CheckCounts:
    """(counts by part, labels of val) -> warnings. All thousand classes have exactly 50 validation images."""

    def check(counts: dict[str, int], val_labels: Sequence[int]) -> list[str]:
        warnings = discover.check_counts(source, counts, DATASET.expected, options.allow_partial, problems)
        a_class = Counter(val_labels)
        odd = [wnid for wnid, number in wnids().items() if a_class[number] != VAL_A_CLASS]
        if odd and not warnings and len(val_labels) == DATASET.expected["val"]:
            problems.add(f"{source}: {len(odd)} classes have not {VAL_A_CLASS} val images, first {odd[0]}")
        return warnings

    return check


def _list(source: Source, problems: Problems) -> tuple[list[Photo], list[Photo]]:
    """Training photos and, in the order of their numbers, validation photos."""
    train: dict[str, Photo] = {}
    held_out: dict[int, RawFile] = {}
    for file in source.files:
        match, val = _TRAIN.fullmatch(file.name), _VAL.fullmatch(file.name)
        if match:
            key, wnid = f"in1k_{match[1].lower()}_{match[2]}", match[1].lower()
            folder = file.parent.rpartition("/")[2]
            if wnid not in wnids():
                problems.add(f"{file}: {wnid} is not one of the thousand classes; move it elsewhere")
            elif _WNID.fullmatch(folder) and folder != wnid:
                problems.add(f"{file}: lies in the folder of {folder}; move it to that of {wnid}")
            elif key in train:
                problems.add(f"{file}: appears twice, also as {train[key].file}; keep one of them")
            else:
                train[key] = Photo(key, file, f"train/{wnid}/{file.name}", wnids()[wnid])
        elif val:
            twin = held_out.setdefault(int(val[1]), file)
            if twin is not file:
                problems.add(f"{file}: appears twice, also as {twin}; keep one of them")
    return list(train.values()), _label_val(source, held_out, problems)


def _label_val(source: Source, held_out: dict[int, RawFile], problems: Problems) -> list[Photo]:
    """Validation photos by their folders, or else by Kaggle's csv or the devkit."""
    photos: list[Photo] = []
    table: dict[int, str] | None = None
    for number in sorted(held_out):
        file = held_out[number]
        wnid: str | None = file.parent.rpartition("/")[2]
        if wnid not in wnids():
            table = _val_table(source) if table is None else table
            wnid = table.get(number)
        if wnid not in wnids():
            problems.add(f"{file}: the source does not say its class ({wnid}); check the devkit or csv")
        else:
            photos.append(Photo(f"in1k_val_{number:08d}", file, f"val/{file.name}", wnids()[wnid or ""]))
    return photos


def _val_table(source: Source) -> dict[int, str]:
    """Number of a validation image -> wnid. UserError when the source has neither csv nor devkit."""
    by_name = {file.name.lower(): file for file in sorted(source.files, key=lambda file: natural_key(file.path))}
    try:
        if "loc_val_solution.csv" in by_name:
            rows = csv.DictReader(io.StringIO(by_name["loc_val_solution.csv"].read().decode()))
            return {int(row["ImageId"].rpartition("_")[2]): row["PredictionString"].split()[0] for row in rows}
        if {"meta.mat", "ilsvrc2012_validation_ground_truth.txt"} <= by_name.keys():
            return _devkit_table(by_name["meta.mat"], by_name["ilsvrc2012_validation_ground_truth.txt"])
    except (BadFile, ValueError, KeyError, IndexError, TypeError, UnicodeDecodeError) as error:
        raise UserError(f"{source}: the labels of val cannot be read ({error}); replace the devkit or csv") from error
    raise UserError(
        f"{source}: val is flat and nothing says its classes; add ILSVRC2012_devkit_t12.tar.gz as another --source, "
        "or LOC_val_solution.csv"
    )


def _devkit_table(meta: RawFile, truth: RawFile) -> dict[int, str]:
    """The devkit numbers the classes in an order of its own, and the inner nodes of the tree after them."""
    from scipy.io import loadmat

    synsets = loadmat(io.BytesIO(meta.read()), simplify_cells=True)["synsets"]
    wnid_of = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets}
    return {number: wnid_of[int(line)] for number, line in enumerate(truth.read().decode().split(), 1)}
