"""Inputs of models of several channels: a case is a file a channel, `CASE_0000.ENDING`, `CASE_0001.ENDING`, ... as
nnU-Net has them. Everything names such a case by its first file."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwkvctl.base.errors import UserError
from rwkvctl.data.images import normalise, picture_channels
from rwkvctl.models.bundle import BundleInfo

_NAME = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})(?P<ending>(?:\.nii)?\.[^./]+)", re.IGNORECASE)
FIRST = "_0000"


def files_a_case(info: BundleInfo) -> int:
    """How many files an input is put together of; 1 where each is an input of its own."""
    return 1 if info.image_kind == "rgb8" else len(info.channel_files or [1] * info.channels)


def in_words(info: BundleInfo) -> str:
    """What the model's channels are called."""
    return f"{info.channels} channels" + (f" ({', '.join(info.channel_names)})" if info.channel_names else "")


def cases(files: Iterable[Path], info: BundleInfo) -> list[Path]:
    """The first file of each case, and what is whole by itself: arrays, and 4-D scans. UserError where a channel is
    missing."""
    wanted = files_a_case(info)
    if wanted == 1:
        return list(files)
    found: list[Path] = []
    for path in files:
        match = None if path.is_dir() else _NAME.fullmatch(path.name)
        if match is None or path.suffix.lower() in (".npy", ".h5"):
            found.append(path)
            continue
        number = int(match["channel"])
        if number >= wanted:
            raise UserError(f"input {path}: is of channel {number:04d}, and the model takes {in_words(info)}")
        first = path.with_name(f"{match['case']}{FIRST}{match['ending']}")
        files_of(first, info)  # all there
        if first not in found:
            found.append(first)
    return list(dict.fromkeys(found))


def files_of(path: Path, info: BundleInfo) -> list[Path]:
    """All files of the input that is named by `path`."""
    match, wanted = _NAME.fullmatch(path.name), files_a_case(info)
    if wanted == 1 or match is None or not path.name.startswith(f"{match['case']}{FIRST}") or path.suffix == ".npy":
        return [path]
    every = [path.with_name(f"{match['case']}_{number:04d}{match['ending']}") for number in range(wanted)]
    for number, file in enumerate(every):
        if not file.is_file():
            name = f" ({info.channel_names[number]})" if info.channel_names and not info.channel_files else ""
            raise UserError(
                f"input {path}: its channel {number:04d}{name} is missing; the model takes {in_words(info)}, "
                f"add {file.name}"
            )
    return every


def case_name(path: Path, info: BundleInfo) -> str:
    """The name of a file without its channel's number, where the model was trained on files that have one."""
    match = _NAME.fullmatch(path.name)
    numbered = match is not None and info.channel_names and match["channel"] == FIRST[1:]
    return f"{match['case']}{match['ending']}" if match is not None and numbered else path.name


def read_pictures(path: Path, info: BundleInfo) -> NDArray[np.float32]:
    """A case's pictures as the model takes them, (H, W, C); UserError for what they cannot be."""
    planes: list[NDArray[Any]] = []
    files = files_of(path, info)
    if len(files) != files_a_case(info):
        raise UserError(f"input {path}: the model takes {in_words(info)}; call its files CASE_0000, CASE_0001, ...")
    for file, count in zip(files, info.channel_files or [1] * info.channels, strict=True):
        try:
            channels = picture_channels.fitted(picture_channels.channels_of(file.read_bytes()), count)
        except OSError as error:
            raise UserError(f"input {file}: cannot be read ({error.strerror})") from None
        except ValueError as error:
            raise UserError(f"input {file}: {error}") from None
        if planes and channels.shape[:2] != planes[0].shape:
            shapes = [f"{shape[1]} x {shape[0]}" for shape in (channels.shape, planes[0].shape)]
            raise UserError(f"input {file}: is {shapes[0]}, {path.name} is {shapes[1]}; give channels of one size")
        planes += list(np.moveaxis(channels, -1, 0))
    return normalised(planes, info, f"input {path}: ")


def normalised(channels: list[NDArray[Any]], info: BundleInfo, whose: str = "") -> NDArray[np.float32]:
    """Channels (D, H, W) or (H, W) each, by the model's rules; UserError for what they refuse."""
    rules = normalise.rules_of(info.intensity)
    if rules is None:
        raise UserError(f"{whose}the model does not say how its channels were prepared; give .npy in [0, 1]")
    try:
        return normalise.stacked(channels, rules)[0]
    except ValueError as error:
        raise UserError(f"{whose}{error}; give an image with contrast") from None
