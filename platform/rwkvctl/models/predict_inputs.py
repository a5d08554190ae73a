"""Image files and arrays as a model's kind of image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np

from rwkvctl.base.errors import UserError
from rwkvctl.data.images.files import check_image, decode_rgb
from rwkvctl.models.bundle import BundleInfo

ARRAYS = (".npy", ".h5")


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
