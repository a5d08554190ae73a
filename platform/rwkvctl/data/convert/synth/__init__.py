"""Synthetic source trees: the names, encodings and oddities of each data set's download, with images one can learn.

A module a data set has `write_<form>(folder, n, size, seed)` for every form in which the data set is distributed, and
`trap_<name>(folder) -> path` for what can be wrong with it; `traps` holds those that any tree can have.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import ModuleType

from rwkvctl.base.errors import UserError
from rwkvctl.base.suggestions import did_you_mean

FORMS = {
    "acdc": ("h5", "nifti"),
    "busi": ("kaggle",),
    "clinicdb": ("tif", "png", "jpg"),
    "colondb": ("png", "bmp"),
    "folder": ("pairs",),
    "fugc": ("zenodo",),
    "glas": ("bmp",),
    "goals": ("full", "public"),
    "imagefolder": ("textures",),
    "imagetable": ("column", "onehot"),
    "imagenet": ("tars", "folder", "kaggle", "parquet", "timm"),
    "isic2017": ("official",),
    "kvasir": ("jpg",),
    "nnunet": ("volumes", "slices", "slice_channels", "channels", "ct"),
    "pairs": (
        "suffix", "annotators", "instances", "classes", "parts",
        "grey", "colour", "palette", "ids", "objects", "jpegmasks",
        "languages", "endings", "beside", "beginnings", "cases", "junk", "csv", "metadata",
        "volume_suffix", "volume_folders", "volume_cases", "volume_organs", "volume_annotators", "volume_contrasts",
        "volume_tiff",
    ),
    "arrays": ("volumes", "slices", "npz", "channels", "onehot", "parts"),
    "stacked": ("npy", "npz", "hdf5"),
    "stackedclasses": ("npz", "npy"),
    "bids": ("lesions", "contrasts"),
    "decathlon": ("task", "channels"),
    "dicom": ("seg", "labelmap", "rtstruct"),
    "psvfm": ("png",),
    "synapse": ("transunet", "samed", "cascade", "nifti"),
}  # fmt: skip
"""The forms of each data set, the usual one first."""

Trap = Callable[[Path], Path]


def write(
    name: str, folder: Path | str, *, n: int = 12, size: int = 64, seed: int = 0, traps: Sequence[str] = ()
) -> Path:
    """Write the tree `NAME` or `NAME:FORM` into the new folder `folder`, then spoil it with `traps`.

    `n` is about the number of labelled samples (patients for volumes), `size` the longer side in pixels. UserError for
    an unknown name, form or trap (with near matches), a folder that is not empty, and sizes out of range.
    """
    dataset, _, form = name.partition(":")
    _one_of("data set", dataset, FORMS)
    form = _one_of(f"form of {dataset}", form or FORMS[dataset][0], FORMS[dataset])
    known = all_traps(dataset)
    for trap in traps:
        _one_of(f"trap of {dataset}", trap, known)
    if not 6 <= n <= 100 or not 32 <= size <= 512:
        raise UserError(f"--n {n} --size {size}: give 6 to 100 samples of 32 to 512 pixels")
    folder = Path(folder)
    if folder.exists() and (folder.is_file() or any(folder.iterdir())):
        raise UserError(f"--out {folder}: exists and is not empty; give a new folder")
    getattr(_module(dataset), f"write_{form}")(folder, n, size, seed)
    for trap in traps:
        known[trap](folder)
    return folder


def how_to_prepare(name: str, folder: Path | str) -> str:
    """The command that prepares the tree `NAME` or `NAME:FORM` in `folder`."""
    dataset, _, form = name.partition(":")
    options = getattr(_module(dataset), "OPTIONS", {}).get(form or FORMS[dataset][0], "")
    return " ".join(filter(None, [f"rwkvctl data prepare {dataset} --source {folder}", options, "--allow-partial"]))


def all_traps(dataset: str) -> dict[str, Trap]:
    """Name -> function that spoils a tree of `dataset` and returns the file to look at; those of its own first."""
    modules = [_module(dataset), importlib.import_module(f"{__name__}.traps")]
    found = [(name, module) for module in modules for name in vars(module) if name.startswith("trap_")]
    return {name.removeprefix("trap_").replace("_", "-"): getattr(module, name) for name, module in found}


def _module(dataset: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{dataset}")


def _one_of(what: str, given: str, known: Iterable[str]) -> str:
    if given not in known:
        raise UserError(f"{what} {given!r} is unknown; {did_you_mean(given, known)}")
    return given
