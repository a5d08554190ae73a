"""What the `dataset.json` of an nnU-Net folder says, of version 2 or 1."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from rwkvctl.base.errors import UserError
from rwkvctl.data.convert.formats import decathlon
from rwkvctl.data.convert.sources import RawFile, Source

BACKGROUND, IGNORE = "background", "ignore"
IGNORED = 255


class Region(NamedTuple):
    """Several classes that are scored as one; value: what nnU-Net writes it as."""

    name: str
    classes: tuple[int, ...]
    value: int


@dataclass(frozen=True)
class Labels:
    """Class names by id, and (stored value, id); nnU-Net's `ignore` becomes 255. The regions are in the order in which
    nnU-Net writes them, each over the ones before."""

    classes: tuple[str, ...]
    ids: tuple[tuple[int, int], ...]
    regions: tuple[Region, ...] = ()


class Paths(NamedTuple):
    """The files of a case, by their place in the source."""

    images: tuple[str, ...]
    label: str


@dataclass(frozen=True)
class Description:
    """root: the folder that holds dataset.json; ending: of the files, lower case; channels: their names; listed: the
    files of each case, where `dataset` lists them."""

    root: str
    labels: Labels
    ending: str
    channels: tuple[str, ...]
    listed: Mapping[str, Paths] | None = field(default=None)


def is_there(source: Source) -> bool:
    """Whether this is meant to be an nnU-Net folder, or several, be they supported or not."""
    return any(_is_nnunet(source, file) for file in source.files) or _link(source) is not None


def read(source: Source) -> Description:
    """UserError when there is no such folder, or its dataset.json is wrong or not supported."""
    file = _find(source)
    try:
        content = json.loads(file.read())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: is not JSON ({str(error)[:80]})") from error
    if not isinstance(content, dict):
        raise UserError(f"{file}: is not an object with the fields of nnU-Net v2")
    if "modality" in content and "file_ending" not in content:
        content = _as_version_2(file, content)
    for name, kind in (("file_ending", str), ("labels", dict)):
        if name not in content:
            raise UserError(f"{file}: has no field '{name}'")
        if not isinstance(content[name], kind):
            raise UserError(f"{file}: {name} must be {'text' if kind is str else 'an object'}")
    named = content.get("channel_names", {})
    channels = tuple(map(str, named.values() if isinstance(named, dict) else named))
    labels = _labels(file, content["labels"], content.get("regions_class_order"))
    listed = _listed(file, content["dataset"]) if "dataset" in content else None
    return Description(file.parent, labels, content["file_ending"].lower(), channels, listed)


def _as_version_2(file: RawFile, content: dict[str, Any]) -> dict[str, Any]:
    """nnU-Net v1's: labels are named by their numbers, channels are modalities, all files are .nii.gz."""
    labels = content.get("labels")
    if not isinstance(labels, dict) or not all(str(number).isdigit() for number in labels):
        raise UserError(f"{file}: labels must be an object of names by number, as nnU-Net v1 has them")
    numbers = {str(name): int(number) for number, name in labels.items()}
    numbers = {BACKGROUND if number == 0 else name: number for name, number in numbers.items()}
    ending = {"file_ending": ".nii.gz", "channel_names": content["modality"]}
    return {name: value for name, value in content.items() if name != "dataset"} | {"labels": numbers} | ending


def _listed(file: RawFile, cases: Any) -> dict[str, Paths]:
    """`{"CASE": {"images": [path, ...], "label": path}}`, paths from the folder of dataset.json."""
    found = {}
    for name, own in cases.items() if isinstance(cases, dict) else [("", None)]:
        images, label = (own.get("images"), own.get("label")) if isinstance(own, dict) else (None, None)
        texts = [str(text) for text in (*images, label)] if isinstance(images, list) and images and label else []
        if not texts:
            raise UserError(f"{file}: dataset: must be {{CASE: {{images: [path, ...], label: path}}}}, see {name!r}")
        places = [posixpath.normpath(posixpath.join(file.parent, text)) for text in texts]
        for text, place in zip(texts, places, strict=True):
            if text.startswith("/") or place.startswith(".."):
                raise UserError(f"{file}: dataset: {name}: {text} lies outside the source; put copies into the folder")
        found[name] = Paths(tuple(places[:-1]), places[-1])
    return found


def _is_nnunet(source: Source, file: RawFile) -> bool:
    if file.name != "dataset.json":
        return False
    if decathlon.is_decathlon(source, file):  # whose files have no number of a channel
        return False
    return f"{file.parent}/imagesTr".lstrip("/") in source.folders or b'"dataset"' in file.read()


def _link(source: Source) -> str | None:
    """A dataset.json that is a link out of the source, and so is not read."""
    beside = {folder.removesuffix("imagesTr") for folder in source.folders if folder.split("/")[-1] == "imagesTr"}
    return next((path for path in source.links if path.removesuffix("dataset.json") in beside), None)


def _find(source: Source) -> RawFile:
    found = [file for file in source.files if _is_nnunet(source, file)]
    if not found and (link := _link(source)):
        raise UserError(f"{source}: {link} is a link out of the folder, which is not followed; put a copy in its place")
    if len(found) != 1:
        what = "no dataset.json beside imagesTr/" if not found else f"{len(found)} nnU-Net folders"
        raise UserError(f"{source}: {what} here; give one folder DatasetNNN_Name")
    return found[0]


def _labels(file: RawFile, named: dict[str, Any], order: Any) -> Labels:
    values = {name: number if isinstance(number, list) else [number] for name, number in named.items()}
    if not all(own and all(type(n) is int and 0 <= n < IGNORED for n in own) for own in values.values()):
        raise UserError(f"{file}: labels must be whole numbers from 0 to 254, or lists of them (regions)")
    ignored = values.pop(IGNORE, [])
    numbers = sorted({number for own in values.values() for number in own})
    if numbers != list(range(len(numbers))) or len(numbers) < 2 or [0] not in values.values():
        raise UserError(f"{file}: labels must be numbered 0, 1, 2, ... with the background first")
    if ignored and ignored != [len(numbers)]:
        raise UserError(f"{file}: labels: {IGNORE} must be {len(numbers)}, the number after the last label")
    regions = {name: own for name, own in values.items() if own != [0]}
    ids = [(number, number) for number in numbers] + [(number, IGNORED) for number in ignored]
    if all(len(own) == 1 for own in regions.values()):
        name_of = {own[0]: name for name, own in values.items()}
        return Labels(tuple(name_of[number] for number in numbers), tuple(ids))
    if not isinstance(order, list) or len(order) != len(regions) or not all(type(n) is int for n in order):
        raise UserError(f"{file}: regions_class_order must have a number for each of the {len(regions)} regions")
    background = next(name for name, own in values.items() if own == [0])
    classes = [background, *(_class_name(number, regions) for number in numbers[1:])]
    own_regions = [Region(name, tuple(own), value) for (name, own), value in zip(regions.items(), order, strict=True)]
    return Labels(tuple(_unlike(classes)), tuple(ids), tuple(own_regions))


def _class_name(number: int, regions: Mapping[str, list[int]]) -> str:
    """What is a label of its own within regions: the smallest of them, `only` where that has others, too."""
    within = [name for name, own in regions.items() if number in own]
    smallest = min(within, key=lambda name: len(regions[name]))
    return smallest if len(regions[smallest]) == 1 else f"{smallest} only"


def _unlike(names: list[str]) -> list[str]:
    """Names of which none is another's: labels that no region tells apart have their number, too."""
    return [f"{name} {number}" if names.count(name) > 1 else name for number, name in enumerate(names)]
