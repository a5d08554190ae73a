"""A folder of the Medical Segmentation Decathlon, which lists its files in `dataset.json`.

dataset.json                modality, labels by number, training: [{"image": ..., "label": ...}]
imagesTr/CASE.nii.gz        one file a case, of several channels it is 4-D
labelsTr/CASE.nii.gz        label numbers
"""

from __future__ import annotations

import json
import posixpath
from dataclasses import dataclass, replace
from typing import Any

from rwkvctl.base.errors import BadFile, UserError
from rwkvctl.data.convert import discover, voxel_files
from rwkvctl.data.convert.discover import Problems
from rwkvctl.data.convert.formats import nnunet_rules, volume_sets
from rwkvctl.data.convert.formats.base import Dataset, Options, Plan
from rwkvctl.data.convert.formats.volume_sets import Labels, Scans
from rwkvctl.data.convert.sources import RawFile, Source, natural_key
from rwkvctl.data.convert.voxel_files import VoxelFile

DATASET = Dataset(
    name="decathlon",
    title="any task of the Medical Segmentation Decathlon",
    task="segmentation",
    classes=(),
    expected={},
    forms={"volumes": "TaskNN_Name/ with dataset.json, which lists imagesTr/CASE.nii.gz and labelsTr/CASE.nii.gz"},
    licence="CC BY-SA 4.0 (the Decathlon's own tasks)",
    access="http://medicaldecathlon.com",
    citation="Antonelli et al., The Medical Segmentation Decathlon, Nature Communications 13, 2022",
    options=("ratio", "groups", "seeds", "range", "intensity"),
)
_MOST_LABEL = 65535


@dataclass(frozen=True)
class _Told:
    """What dataset.json says. entries: (image, label) as it names them; channels: names; test: how many images."""

    file: RawFile
    labels: Labels
    channels: tuple[str, ...]
    entries: tuple[tuple[str, str], ...]
    test: int


def is_decathlon(source: Source, file: RawFile) -> bool:
    """Whether a file is the description of such a folder, with images as it lists them: those of nnU-Net v1 are listed
    without the number of their channel."""
    if file.name.lower() != "dataset.json":
        return False
    try:
        content = json.loads(file.read())
    except (ValueError, RecursionError, BadFile):
        return False
    if not isinstance(content, dict) or not isinstance(content.get("training"), list) or "file_ending" in content:
        return False
    there = {own.path for own in source.below(file.parent)}
    listed = (own.get("image") for own in content["training"] if isinstance(own, dict))
    return any(_place(file, path) in there for path in listed if isinstance(path, str))


def _place(file: RawFile, path: str) -> str:
    """Of a file that dataset.json names, from its own folder on."""
    return posixpath.normpath(f"{file.parent}/{path}".lstrip("/"))


def recognise(source: Source) -> str | None:
    return "volumes" if any(is_decathlon(source, file) for file in source.files) else None


def plan(source: Source, options: Options, problems: Problems) -> Plan:
    told = _read(source)
    beside, files = voxel_files.Beside(source.files), {file.path: file for file in source.files}
    cases: dict[str, Scans] = {}
    for image, label in told.entries:
        found = [files.get(_place(told.file, path)) for path in (image, label)]
        if found[0] is None or found[1] is None:
            path = label if found[0] else image
            problems.leave_out(told.file, f"lists {path}, which is not there; add it, or take it off the list")
            continue
        name = voxel_files.stem(found[1])
        first, *others = _channels(beside.of(found[0]), len(told.channels))
        cases[name] = Scans(name, first, (beside.of(found[1]),), others=tuple(others))
    discover.refuse_empty(source, cases, DATASET.name, DATASET.forms)
    keys = discover.sample_keys(options.dataset, cases)
    ordered = {keys[name]: cases[name] for name in sorted(cases, key=natural_key)}
    made = volume_sets.volumes_plan("volumes", ordered, told.labels, options, problems)
    made = nnunet_rules.planned(made, told.channels, options)
    if told.test:
        made.warnings.append(f"the {told.test} images under test have no labels and were left out")
    return made


def _channels(file: VoxelFile, count: int) -> list[VoxelFile]:
    """All channels of a file: of several, each along its fourth axis."""
    return [file] if count < 2 else [replace(file, channel=number, channels=count) for number in range(count)]


def _read(source: Source) -> _Told:
    found = [file for file in source.files if is_decathlon(source, file)]
    if len(found) != 1:
        raise UserError(f"{source}: {len(found)} folders of the Decathlon here; give one folder TaskNN_Name")
    file = found[0]
    content = json.loads(file.read())
    entries = content["training"]
    if not all(isinstance(own, dict) and _is_text(own.get("image")) and _is_text(own.get("label")) for own in entries):
        raise UserError(f'{file}: training must list {{"image": PATH, "label": PATH}}; correct the entry without them')
    channels = content.get("modality") or {}
    names = tuple(map(str, channels.values() if isinstance(channels, dict) else channels))
    pairs = tuple((own["image"], own["label"]) for own in entries)
    test = content.get("test")
    return _Told(file, _labels(file, content.get("labels")), names, pairs, len(test) if isinstance(test, list) else 0)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _labels(file: RawFile, numbers: Any) -> Labels:
    """By rising numbers; the background is 0, or is there without pixels."""
    try:
        named = {int(number): str(name) for number, name in numbers.items()}
    except (AttributeError, ValueError) as error:
        raise UserError(f'{file}: labels must be an object of numbers and names, {{"0": "background", ...}}') from error
    if not named or min(named) < 0 or max(named) > _MOST_LABEL or len(set(named.values())) < len(named):
        raise UserError(f"{file}: labels must have different names and numbers from 0 to {_MOST_LABEL}")
    named = {0: "background"} | named
    if len(named) < 2:
        raise UserError(f"{file}: labels has no class beside the background; name one")
    ordered = sorted(named)
    return Labels(tuple(named[number] for number in ordered), tuple((number, n) for n, number in enumerate(ordered)))
