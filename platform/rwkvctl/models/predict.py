"""Masks for image files: read, segment at native size, write."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from torch import nn

from rwkvctl.base.errors import JobFailedError, UserError
from rwkvctl.base.files import atomic_open
from rwkvctl.data.images import deep
from rwkvctl.models.bundle import BundleInfo
from rwkvctl.models.inference import segment
from rwkvctl.models.predict_inputs import input_files, read_input
from rwkvctl.models.predict_scans import is_scan, segment_scan
from rwkvctl.models.predict_targets import checked_targets
from rwkvctl.pictures.palette import palette


class Written(NamedTuple):
    """A mask that was written, its input, and what a person should know of how that was read."""

    input: Path
    mask: Path
    note: str = ""


class Planned(NamedTuple):
    """The files to segment, and where each mask goes."""

    inputs: list[Path]
    targets: list[Path]


def predict_files(model: nn.Module, info: BundleInfo, inputs: list[Path], out: Path) -> list[Path]:
    """Write one mask a file into `out`; nothing there is replaced. See `plan` and `predict_each`."""
    return [written.mask for written in predict_each(model, info, plan(inputs, info, out), None)]


def plan(
    inputs: Sequence[Path],
    info: BundleInfo,
    out: Path,
    *,
    overwrite: bool = False,
    window: deep.Range | None = None,
) -> Planned:
    """Everything that can be known to be wrong before the model is loaded and the first mask is written.

    Inputs are files, or folders whose images, arrays and scans are all meant. `overwrite` lets masks replace files that
    are no inputs. `window`, a stated range of raw values, is for models that have no rule of their own.
    """
    if window is not None and info.intensity is not None:
        raise UserError(f"--range: the model has a rule of its own (clip to {info.intensity['clip']}); leave it out")
    files = input_files(inputs)
    return Planned(files, checked_targets(files, info, out, overwrite=overwrite))


def predict_each(model: nn.Module, info: BundleInfo, planned: Planned, window: deep.Range | None) -> Iterator[Written]:
    """Segment and write one after the other: a palette PNG of class ids for an image, `.npy` (uint8) for a volume, and
    for a NIfTI scan a NIfTI file on the scan's own grid.

    Inputs are images (JPEG, PNG, TIFF, BMP), scans (`.nii`, `.nii.gz`) as they come from the scanner, or slices (H, W)
    and volumes (D, H, W) as `.npy` or as the data set `image` of an `.h5` file, see `predict_inputs`.
    """
    for path, target in zip(*planned, strict=True):
        try:
            if is_scan(path):
                yield Written(path, *segment_scan(model, info, path, target.parent))
            else:
                given = read_input(path, info, window)
                yield Written(path, write_mask(target, segment(model, info, given.values)), given.note)
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
