"""Masks for image files: read, segment at native size, write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import nn

from rwkvctl.base.errors import UserError
from rwkvctl.base.files import atomic_open
from rwkvctl.models.bundle import BundleInfo
from rwkvctl.models.inference import segment
from rwkvctl.models.predict_inputs import read_input
from rwkvctl.models.predict_scans import SCANS, is_scan, segment_scan
from rwkvctl.pictures.palette import palette


def predict_files(model: nn.Module, info: BundleInfo, inputs: list[Path], out: Path) -> list[Path]:
    """Write one mask a file into `out`: a palette PNG of class ids for an image, `.npy` (uint8) for a volume, and for
    a NIfTI scan a NIfTI file on the scan's own grid.

    Inputs are images (JPEG, PNG, TIFF, BMP), scans (`.nii`, `.nii.gz`) as they come from the scanner, or slices (H, W)
    and volumes (D, H, W) in [0, 1] as `.npy` or as the data set `image` of an `.h5` file. All inputs are checked to be
    there before the first is read.
    """
    check_inputs(inputs)
    written = []
    for path in inputs:
        if is_scan(path):
            written.append(segment_scan(model, info, path, out))
        else:
            written.append(write_mask(out, path.stem, segment(model, info, read_input(path, info))))
    return written


def stem(path: Path) -> str:
    """The name without its ending, also one of two parts."""
    return next((path.name.removesuffix(end) for end in SCANS if path.name.endswith(end)), path.stem)


def check_inputs(inputs: list[Path]) -> None:
    """Refuse absent files, and names that would write one mask over another."""
    for path in inputs:
        if not path.is_file():
            raise UserError(f"input {path}: no such file")
    stems = [stem(path) for path in inputs]
    for path in inputs:
        if stems.count(stem(path)) > 1:
            raise UserError(
                f"input {path}: another input has the same name {stem(path)}; predict them into two folders"
            )


def write_mask(out: Path, stem: str, mask: np.ndarray[Any, Any]) -> Path:
    """Write a mask atomically under the input's name."""
    path = out / f"{stem}.{'png' if mask.ndim == 2 else 'npy'}"
    with atomic_open(path) as file:
        if mask.ndim == 3:
            np.save(file, mask)
        else:
            picture = Image.fromarray(mask)
            picture.putpalette(palette().ravel().tolist())
            picture.save(file, format="PNG", bits=8)  # else Pillow packs small ids into fewer bits
    return path
