"""An nnU-Net v2 folder `DatasetNNN_Name`: NIfTI volumes, or 2-D images.

    dataset.json                          channel_names, labels, file_ending
    imagesTr/CASE_0000.nii.gz (.png ...)  one file a channel; a colour image is one file
    labelsTr/CASE.nii.gz (.png ...)       label numbers

Of volumes, training takes slices, validation and test whole volumes; cases are split at random by one seed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from rwkvctl.base.errors import BadFile, UserError
from rwkvctl.data.convert import discover
from rwkvctl.data.convert.discover import Problems
from rwkvctl.data.convert.formats.base import Dataset, Options, Plan, sha256
from rwkvctl.data.convert.formats.pairs import Levels, Pair, pairs_plan
from rwkvctl.data.convert.formats.volumes import (
    PLANES,
    WHOLE,
    Case,
    Plane,
    Volume,
    VolumeReader,
    check_labels,
    last_two,
    planes,
    scaled,
)
from rwkvctl.data.convert.sources import RawFile, Source
from rwkvctl.data.images import files as image_files
from rwkvctl.data.images import intensity, nifti
from rwkvctl.data.store.splits import DEFAULT_SEEDS, PARTS, Split, parse_ratio, random_split, random_splits, split_name

DATASET = Dataset(
    name="nnunet",
    title="any nnU-Net v2 data set folder",
    task="segmentation",
    classes=(),
    expected={},
    forms={
        "volumes": "DatasetNNN_Name/ with dataset.json, imagesTr/CASE_0000.nii.gz, labelsTr/CASE.nii.gz",
        "slices": "the same with images (.png, .bmp, .tif)",
    },
    licence="your own",
    access="your own files",
    options=("ratio", "seeds", "range"),
)
NIFTI, ORIENTATION, IGNORE = (".nii", ".nii.gz"), "itk", "ignore"
WINDOW = ("p0.5", "p99.5")


@dataclass(frozen=True)
class Labels:
    """What dataset.json says: class names by id, and (stored value, id); nnU-Net's `ignore` becomes 255."""

    classes: tuple[str, ...]
    ids: tuple[tuple[int, int], ...]


def recognise(source: Source) -> str | None:
    try:
        _, _, ending = _read_json(source)
    except (UserError, BadFile):
        return None
    return "volumes" if ending in NIFTI else "slices"


def plan(source: Source, options: Options, problems: Problems) -> Plan:
    root, labels, ending = _read_json(source)
    if ending not in NIFTI and ending not in image_files.EXTENSIONS:
        known = ", ".join(sorted([*NIFTI, *image_files.EXTENSIONS]))
        raise UserError(
            f"{source}: dataset.json: file_ending {ending!r} is not read here, only {known}; convert the files"
        )
    pattern = re.escape(ending)
    found = discover.by_pattern(
        source.below(f"{root}/imagesTr".lstrip("/")), re.compile(rf"(?P<id>[^/]+)_0000{pattern}"), problems
    )
    masks = discover.by_pattern(
        source.below(f"{root}/labelsTr".lstrip("/")), re.compile(rf"(?P<id>[^/]+){pattern}"), problems
    )
    if any(re.search(rf"_0001{pattern}$", file.name, re.IGNORECASE) for file in source.files):
        raise UserError(f"{source}: images of several channel files (_0001); only one file a case is read here")
    discover.refuse_empty(source, found, DATASET.name, DATASET.forms)
    names = discover.pair(found, masks, problems)
    keys = discover.sample_keys(options.dataset, names)
    if ending in NIFTI:
        return _plan_volumes({keys[name]: (found[name], masks[name]) for name in names}, labels, options, problems)
    pairs = [Pair(keys[name], found[name], (masks[name],)) for name in names]
    return _plan_images(pairs, root, labels, options)


def _read_json(source: Source) -> tuple[str, Labels, str]:
    """(root, labels, file ending). UserError when there is no such folder, or its dataset.json is wrong."""
    found = [
        file
        for file in source.files
        if file.name == "dataset.json" and f"{file.parent}/imagesTr".lstrip("/") in source.folders
    ]
    if len(found) != 1:
        what = "no dataset.json beside imagesTr/" if not found else f"{len(found)} nnU-Net folders"
        raise UserError(f"{source}: {what} here; give one folder DatasetNNN_Name")
    file = found[0]
    try:
        content = json.loads(file.read())
        ending, numbers = content["file_ending"].lower(), content["labels"]
        if not all(type(number) is int and 0 <= number < 255 for number in numbers.values()):
            raise ValueError("labels must be single whole numbers (regions are not read here)")
        named = {number: name for name, number in numbers.items() if name != IGNORE}
        if sorted(named) != list(range(len(numbers) - (IGNORE in numbers))) or len(named) < 2:
            raise ValueError("labels must be numbered 0, 1, 2, ... with the background first")
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise UserError(
            f"{file}: {error if isinstance(error, ValueError) else 'not as nnU-Net v2 writes it'}"
        ) from error
    ids = [(number, number) for number in sorted(named)]
    ignored = [(numbers[IGNORE], 255)] if IGNORE in numbers else []
    return file.parent, Labels(tuple(named[number] for number in sorted(named)), tuple(ids + ignored)), ending


# Images -------------------------------------------------------------------------------------------------------------


def _plan_images(pairs: list[Pair], root: str, labels: Labels, options: Options) -> Plan:
    def make_splits(ids: Mapping[str, Sequence[str]], groups: Mapping[str, str]) -> dict[str, Split]:
        return random_splits(ids["all"], options.ratio, options.seeds)

    named = replace(options, classes=labels.classes)
    return pairs_plan(DATASET, named, "slices", {"all": pairs}, Levels(labels.ids), make_splits, root=root)


# Volumes ------------------------------------------------------------------------------------------------------------


def _plan_volumes(
    files: Mapping[str, tuple[RawFile, RawFile]], labels: Labels, options: Options, problems: Problems
) -> Plan:
    ratio = parse_ratio(options.ratio or "8:1:1")
    if options.seeds and len(options.seeds) > 1:
        raise UserError("--seed: slices and volumes are laid out by one split; give one seed")
    seed = (options.seeds or DEFAULT_SEEDS)[0]
    cases = {}
    for key, (image, mask) in files.items():
        try:
            grid = nifti.read_grid(image)
            nifti.check_same_grid(mask, nifti.read_grid(mask), image, grid)
        except BadFile as error:
            problems.add(str(error))
        else:
            cases[key] = Case(key, (image, mask), depth=grid.shape[2], patient=key)
    problems.raise_if_any()
    split = random_split(list(cases), ratio, seed)
    parts: dict[str, list[Case] | list[Plane]] = {part: [cases[key] for key in split.ids[part]] for part in PARTS}
    parts["train"] = planes(cases[key] for key in sorted(split.ids["train"], key=discover.natural_key))

    def make_splits(ids: Mapping[str, Sequence[str]], groups: Mapping[str, str]) -> dict[str, Split]:
        lists = {part: list(ids[part]) for part in PARTS}
        return {split_name(ratio, seed): Split(f"cases: {split.rule}; train: their slices", lists, seed)}

    return Plan(
        form="volumes",
        task="segmentation",
        classes=labels.classes,
        image_kind="float",
        parts=parts,
        read=VolumeReader(options.dataset, len(labels.classes), Load(labels)),
        make_splits=make_splits,
        mask_rule="value",
        intensity=intensity.rule(*WINDOW),
        orientation=ORIENTATION,
        limits={"train": PLANES, "val": WHOLE, "test": WHOLE},
    )


@dataclass(frozen=True)
class Load:
    """Reads a case. Values are scaled by the volume's own percentiles, since channels can be of any kind."""

    labels: Labels

    def __call__(self, case: Case) -> Volume:
        image_file, mask_file = case.files
        image, mask = nifti.read(image_file), nifti.read(mask_file)
        check_labels(mask_file, mask.voxels, [stored for stored, _ in self.labels.ids])
        table = np.zeros(256, np.uint8)
        for stored, own in self.labels.ids:
            table[stored] = own
        low, high = intensity.window(image.voxels, *WINDOW)
        return Volume(
            image=scaled(image_file, nifti.turned(image.voxels, ORIENTATION), low, high),
            ids=table[nifti.turned(mask.voxels, ORIENTATION).astype(np.uint8)],
            sources={last_two(image_file): sha256(image.data), last_two(mask_file): sha256(mask.data)},
            meta={
                **nifti.geometry(image.grid, ORIENTATION),
                "orig_mode": str(image.voxels.dtype),
                "mask_rule": "value",
                "intensity": intensity.rule(low, high),
            },
        )
