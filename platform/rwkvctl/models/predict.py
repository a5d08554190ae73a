"""Masks for image files: read, segment at native size, write."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from rwkvctl.base.errors import JobFailedError, UserError
from rwkvctl.base.files import atomic_open, write_bytes
from rwkvctl.data.images import deep
from rwkvctl.models.bundle import BundleInfo
from rwkvctl.models.ensemble import Member, Segmenter
from rwkvctl.models.predict_form import Form
from rwkvctl.models.predict_inputs import input_files, read_input
from rwkvctl.models.predict_scans import is_scan, segment_scan
from rwkvctl.models.predict_targets import checked_targets, preview_of, probabilities_of
from rwkvctl.pictures.overlays import preview_png
from rwkvctl.pictures.palette import palette


class Written(NamedTuple):
    """A mask that was written, and its input."""

    input: Path
    mask: Path
    ids: NDArray[np.uint8]
    """What is in the mask's file, in the file's axes."""
    voxel_ml: float | None = None
    """Of a scan."""
    note: str = ""
    """What a person should know of how the input was read."""


class Planned(NamedTuple):
    """The files to segment, and where each mask goes."""

    inputs: list[Path]
    targets: list[Path]


def predict_files(model: nn.Module, info: BundleInfo, inputs: list[Path], out: Path) -> list[Path]:
    """Write one mask a file into `out`; nothing there is replaced. See `plan` and `predict_one`."""
    segmenter, planned = Segmenter([Member(model, info)]), plan(inputs, info, out)
    return [predict_one(segmenter, *each).mask for each in zip(*planned, strict=True)]


def plan(
    inputs: Sequence[Path],
    info: BundleInfo,
    out: Path,
    *,
    overwrite: bool = False,
    replaceable: Collection[str] = (),
    window: deep.Range | None = None,
    form: Form = Form(),
) -> Planned:
    """Everything that can be known to be wrong before the model is loaded and the first mask is written.

    Inputs are files, or folders whose images, arrays and scans are all meant. `overwrite` lets masks replace files that
    are no inputs; those named `replaceable` may be replaced without. `window`, a stated range of raw values, is for
    models that have no rule of their own.
    """
    if window is not None and info.intensity is not None:
        raise UserError(f"--range: the model has a rule of its own (clip to {info.intensity['clip']}); leave it out")
    files = input_files(inputs)
    form.check(files, info)
    return Planned(files, checked_targets(files, info, out, overwrite=overwrite, replaceable=replaceable, form=form))


def predict_one(
    segmenter: Segmenter,
    path: Path,
    target: Path,
    window: deep.Range | None = None,
    *,
    preview: bool = False,
    form: Form = Form(),
) -> Written:
    """Segment a file and write its mask: a palette PNG of class ids for an image, `.npy` (uint8) for a volume, and for
    a scan a file of its kind on its own grid, or another `form`; with probabilities, if they are asked for, in `.npz`
    beside it, and a picture in the folder `previews`.

    Inputs are images (JPEG, PNG, TIFF, BMP), scans (`.nii`, `.nii.gz`) as they come from the scanner, or slices (H, W)
    and volumes (D, H, W) as `.npy` or as the data set `image` of an `.h5` file, see `predict_inputs`.
    """
    try:
        if is_scan(path):
            scan = segment_scan(segmenter, path, target, form)
            write_probabilities(target, scan.probabilities)
            if preview:
                write_bytes(preview_of(target), preview_png(*scan.shown))
            return Written(path, scan.mask, scan.ids, scan.voxel_ml, scan.note)
        given = read_input(path, segmenter.info, window)
        found = segmenter.segment(given.values)
        write_probabilities(target, found.probabilities)
        if preview:
            write_bytes(preview_of(target), preview_png(given.values, found.mask))
        return Written(path, write_mask(target, found.mask), found.mask, note=given.note)
    except OSError as error:
        raise JobFailedError(f"{target}: cannot be written ({error.strerror})") from error


def write_mask(target: Path, mask: np.ndarray[Any, Any]) -> Path:
    """Write a mask atomically."""
    with atomic_open(target) as file:
        if mask.ndim == 3:
            np.save(file, mask)
        else:
            picture = Image.fromarray(mask)
            picture.putpalette(palette().ravel().tolist())
            picture.save(file, format="PNG", bits=8)  # else Pillow packs small ids into fewer bits
    return target


def write_probabilities(target: Path, probabilities: NDArray[np.float16] | None) -> None:
    """Write `probabilities`, float16 (classes, *mask's shape), atomically beside the mask."""
    if probabilities is not None:
        with atomic_open(probabilities_of(target)) as file:
            np.savez_compressed(file, probabilities=probabilities)
