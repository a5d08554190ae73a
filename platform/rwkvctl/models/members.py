"""An ensemble as a model folder: in `model.json` what all members have in common, beside it a folder for each.

    model.json                   `extra.members`: fold0, fold1, ...
    fold0/model.json             a model folder
    fold0/weights.safetensors

What takes one network refuses it in one line (`bundle.read_weights`).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rwkvctl.base.errors import UserError
from rwkvctl.base.files import fsync_directory
from rwkvctl.models import bundle
from rwkvctl.models.bundle import BundleInfo
from rwkvctl.models.segmenting import check_alike


def folders(folder: str | os.PathLike[str]) -> list[Path]:
    """The members of an ensemble; of any other model its own folder. UserError where one is not the ensemble's."""
    info = bundle.read_info(folder)
    names = bundle.member_names(info)
    found = [Path(folder) / name for name in names] or [Path(folder)]
    if names and together([bundle.read_info(member) for member in found]) != info.weights_sha256:
        raise UserError(f"{folder}: its members are not those of {bundle.INFO_NAME}: get the model again")
    return found


def sees_volumes(folder: str | os.PathLike[str]) -> bool:
    """Whether a model, or a member of it, is a network over three axes."""
    return any(bundle.read_info(member).volumes is not None for member in folders(folder))


def check(folder: str | os.PathLike[str]) -> None:
    """UserError where a file of a model, or of a member of it, is missing or damaged."""
    for member in folders(folder):
        bundle.read_weights(member, bundle.read_info(member))


def together(infos: Sequence[BundleInfo]) -> str:
    """One hash of the weights of all."""
    return hashlib.sha256("".join(f"{info.weights_sha256}\n" for info in infos).encode()).hexdigest()


def save(folder: Path, members: Mapping[str, Path], extra: Mapping[str, Any]) -> BundleInfo:
    """Write an ensemble of model folders, or replace one; it appears whole under its name.

    UserError where the models are not asked the same question.
    """
    infos = [bundle.read_info(member) for member in members.values()]
    check_alike(infos)
    info = infos[0].model_copy(
        update={
            "weights_sha256": together(infos),
            "calibration": None,  # each member has its own
            "extra": {**infos[0].extra, **extra, bundle.MEMBERS: list(members)},
        }
    )
    new = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.new")
    new.mkdir(parents=True)
    try:
        for name, member in members.items():
            shutil.copytree(member, new / name)
        bundle.write_info(new, info)
        shutil.rmtree(folder, ignore_errors=True)
        new.rename(folder)
        fsync_directory(folder.parent)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return info
