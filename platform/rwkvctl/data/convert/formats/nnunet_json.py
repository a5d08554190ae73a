"""What the `dataset.json` of an nnU-Net folder says."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from rwkvctl.base.errors import UserError
from rwkvctl.data.convert.sources import RawFile, Source

IGNORE = "ignore"
_V1 = "; this is nnU-Net v1's, convert the data set with nnUNetv2_convert_old_nnUNet_dataset"


@dataclass(frozen=True)
class Labels:
    """Class names by id, and (stored value, id); nnU-Net's `ignore` becomes 255."""

    classes: tuple[str, ...]
    ids: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Description:
    """root: the folder that holds dataset.json; ending: of the files, lower case; channels: their names."""

    root: str
    labels: Labels
    ending: str
    channels: tuple[str, ...]


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
    if "dataset" in content:
        raise UserError(
            f"{file}: its field 'dataset' lists files by path, which is not supported; lay them out as imagesTr/ and "
            "labelsTr/"
        )
    v1 = _V1 if "modality" in content else ""
    for name, kind in (("file_ending", str), ("labels", dict)):
        if name not in content:
            raise UserError(f"{file}: has no field '{name}'{v1}")
        if not isinstance(content[name], kind):
            raise UserError(f"{file}: {name} must be {'text' if kind is str else 'an object'}{v1}")
    named = content.get("channel_names", {})
    channels = tuple(map(str, named.values() if isinstance(named, dict) else named))
    return Description(file.parent, _labels(file, content["labels"]), content["file_ending"].lower(), channels)


def _is_nnunet(source: Source, file: RawFile) -> bool:
    if file.name != "dataset.json":
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


def _labels(file: RawFile, numbers: dict[str, Any]) -> Labels:
    if not all(type(number) is int and 0 <= number < 255 for number in numbers.values()):
        raise UserError(f"{file}: labels must be single whole numbers (regions are not supported)")
    named = {number: name for name, number in numbers.items() if name != IGNORE}
    if sorted(named) != list(range(len(numbers) - (IGNORE in numbers))) or len(named) < 2:
        raise UserError(f"{file}: labels must be numbered 0, 1, 2, ... with the background first")
    ids = [(number, number) for number in sorted(named)]
    ignored = [(numbers[IGNORE], 255)] if IGNORE in numbers else []
    return Labels(tuple(named[number] for number in sorted(named)), tuple(ids + ignored))
