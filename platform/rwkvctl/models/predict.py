"""Masks for image files: read, segment at native size, write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image
from torch import nn

from rwkvctl.base.errors import UserError
from rwkvctl.base.files import atomic_open, atomic_path
from rwkvctl.data.images import intensity
from rwkvctl.data.images.files import check_image, decode_rgb
from rwkvctl.models.bundle import BundleInfo
from rwkvctl.models.inference import segment_image, segment_volume
from rwkvctl.pictures.palette import palette

ARRAYS = (".npy", ".h5")
SCANS = (".nii.gz", ".nii")


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


def segment(model: nn.Module, info: BundleInfo, image: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The mask of an image, a slice or a volume."""
    function = segment_volume if image.ndim == 3 and info.image_kind == "float" else segment_image
    device = next(model.parameters()).device
    return function(model, image, image_size=info.image_size, image_kind=info.image_kind, device=device)


def is_scan(path: Path) -> bool:
    return path.name.endswith(SCANS)


def stem(path: Path) -> str:
    """The name without its ending, also one of two parts."""
    return next((path.name.removesuffix(end) for end in SCANS if path.name.endswith(end)), path.stem)


def segment_scan(model: nn.Module, info: BundleInfo, path: Path, out: Path) -> Path:
    """Bring a scan to what the model was trained on, and its mask back to the scan's grid."""
    import nibabel

    from rwkvctl.data.convert.sources import on_disk
    from rwkvctl.data.images import nifti

    if info.image_kind != "float":
        raise UserError(f"input {path}: this model takes colour images (JPEG, PNG, TIFF, BMP), not scans")
    if info.intensity is None or info.orientation is None:
        raise UserError(f"input {path}: the model does not say how scans were prepared for it; give .npy in [0, 1]")
    try:
        scan = nifti.read(on_disk(path))
        low, high = intensity.window(scan.voxels, *info.intensity["clip"])
        volume = intensity.scaled(nifti.turned(scan.voxels, info.orientation), low, high)
    except ValueError as error:
        line = str(error).removeprefix(f"{path}: ").removesuffix("; replace it")
        raise UserError(f"input {path}: {line}; give a whole NIfTI scan") from None
    mask = nifti.turned_back(segment(model, info, volume), info.orientation)
    target = out / path.name
    with atomic_path(target) as temporary:
        nibabel.save(nibabel.Nifti1Image(np.ascontiguousarray(mask), scan.grid.affine), temporary)
    return target


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


def read_input(path: Path, info: BundleInfo) -> np.ndarray[Any, Any]:
    """An input as the model's kind of image: uint8 (H, W, 3), or float32 (H, W) or (D, H, W)."""
    if info.image_kind == "float":
        return read_array(path) if path.suffix in ARRAYS else grey(read_image(path))
    if path.suffix in ARRAYS:
        raise UserError(f"input {path}: this model takes colour images (JPEG, PNG, TIFF, BMP), not arrays")
    return read_image(path)


def read_image(path: Path) -> np.ndarray[Any, Any]:
    """An image file as uint8 (H, W, 3)."""
    try:
        return decode_rgb(check_image(path.read_bytes()).data)
    except ValueError as error:
        raise UserError(f"input {path}: {error}; give a JPEG, PNG, TIFF or BMP file") from None


def grey(image: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """A colour image as one channel in [0, 1]."""
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255


def read_array(path: Path) -> np.ndarray[Any, Any]:
    """A slice or a volume from `.npy` or `.h5`, as float32."""
    try:
        if path.suffix == ".npy":
            array = np.load(path, allow_pickle=False)
        else:
            import h5py

            with h5py.File(path, "r") as file:
                array = file["image"][:]
    except (ValueError, OSError, KeyError) as error:
        raise UserError(f"input {path}: cannot be read ({' '.join(str(error).split())[:150]})") from None
    if array.ndim not in (2, 3) or not np.issubdtype(array.dtype, np.number) or 0 in array.shape:
        raise UserError(f"input {path}: must be numbers of shape (H, W) or (D, H, W), is {array.dtype} {array.shape}")
    array = array.astype(np.float32)
    if not np.isfinite(array).all() or array.min() < -0.01 or array.max() > 1.01:
        raise UserError(f"input {path}: values must lie in [0, 1], they go from {array.min():g} to {array.max():g}")
    return array


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
