"""What a model is given, as the model takes it: pictures of 8 bits and more, arrays. One contract for files that
`predict` reads and for what a served model is sent.

A picture of 8 bits is what it shows. An array in [0, 1] is scaled already; one of type uint8 holds a picture's pixels.
All other numbers (16 bits, floats, a scanner's HU) are raw: the model's own rule (`info.intensity`, of the data that it
was trained on) brings them to [0, 1], and without a rule they are refused, or go by a range that is stated.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from rwkvctl.base.errors import UserError
from rwkvctl.data.convert.sources import natural_key
from rwkvctl.data.images import deep, intensity, itk, looks, normalise, tiff_stack
from rwkvctl.data.images import files as image_files
from rwkvctl.models import predict_channels
from rwkvctl.models.bundle import BundleInfo
from rwkvctl.models.predict_scans import is_scan

Values = NDArray[Any]

ARRAYS = (".npy", ".h5")
KINDS = "JPEG, PNG, TIFF or BMP images, .npy or .h5 arrays, or scans (NIfTI, NRRD, MHA, DICOM)"
_NPY, _HDF5 = b"\x93NUMPY", b"\x89HDF\r\n\x1a\n"
_SLACK = 0.01
"""How far values of [0, 1] may lie outside, from resampling."""

ALONE = "scaled by the percentiles of this slice; the model's training data were by those of whole volumes"


class Given(NamedTuple):
    """uint8 (H, W, 3), or float32 (H, W[, C]) or (D, H, W[, C]) as the model's rule makes them; and what a person
    should know of how it was read."""

    values: Values
    """Of a TIFF of several pages in colour uint8 (N, H, W, 3)."""
    note: str = ""
    calibration: dict[int, Any] | None = None
    """Of a TIFF of several pages, see `tiff_stack`."""


# Which files --------------------------------------------------------------------------------------------------------


def input_files(paths: Iterable[Path]) -> list[Path]:
    """The files that are meant: each path, or of a folder all images, arrays and scans in it, in natural order. A
    folder of DICOM slices is one scan."""
    files = []
    for path in paths:
        if itk.is_series(path):
            files.append(path)
        elif path.is_dir():
            files += _in_folder(path)
        elif path.is_file():
            files.append(path)
        else:
            raise UserError(f"input {path}: {'is not a file' if path.exists() else 'no such file'}")
    return files


def _in_folder(folder: Path) -> list[Path]:
    try:
        found = [path for path in folder.iterdir() if not path.name.startswith(".") and is_input(path)]
    except OSError as error:
        raise UserError(f"input {folder}: cannot be read ({error.strerror})") from None
    if not found:
        raise UserError(f"input {folder}: a folder without {KINDS}; of its subfolders only DICOM is taken")
    return sorted(found, key=lambda path: natural_key(path.name))


def is_input(path: Path) -> bool:
    ending = path.suffix.lower()
    return path.is_file() and (ending in image_files.EXTENSIONS or ending in ARRAYS or is_scan(path))


def array_shape(path: Path) -> tuple[int, ...] | None:
    """The shape of an array's file, from its header; None for any other file."""
    try:
        with path.open("rb") as file:
            head = file.read(8)
        if head.startswith(_NPY):
            return tuple(np.load(path, mmap_mode="r", allow_pickle=False).shape)
        if head == _HDF5:
            import h5py

            with h5py.File(path, "r") as content:
                return tuple(content["image"].shape)
    except (OSError, ValueError, KeyError, AttributeError):
        pass
    return None


# What is in them ----------------------------------------------------------------------------------------------------


def read_input(path: Path, info: BundleInfo, window: deep.Range | None = None) -> Given:
    """A file as the model's kind of image; UserError for what it cannot be. `window` is a range that was stated."""
    if info.image_kind == "float" and info.channels > 1 and path.suffix.lower() not in ARRAYS:
        return Given(predict_channels.read_pictures(path, info))
    try:
        data = path.read_bytes()
        if path.suffix.lower() in ARRAYS and not data.startswith((_NPY, _HDF5)):
            raise UserError(f"cannot be read (not {'an .npy' if path.suffix.lower() == '.npy' else 'an HDF5'} file)")
        several = image_files.sniff(data) == "tif" and tiff_stack.page_count(path) > 1
        return _from_stack(data, info, window) if several else decode(data, info, window)
    except OSError as error:
        raise UserError(f"input {path}: cannot be read ({error.strerror})") from None
    except UserError as error:
        raise UserError(f"input {path}: {error}") from None


def decode(data: bytes, info: BundleInfo, window: deep.Range | None = None) -> Given:
    """The content of a picture or an array as the model's kind of image; UserError for what it cannot be."""
    if data.startswith((_NPY, _HDF5)):
        return _from_array(_read_array(data), info, window)
    if info.image_kind == "float" and info.channels > 1:
        words = predict_channels.in_words(info)
        raise UserError(f"is one picture, and the model takes {words}; give them as .npy (H, W, {info.channels})")
    try:
        return _from_picture(data, info, window)
    except image_files.NoRange as error:
        raise UserError(no_range(str(error))) from None
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{error}; give a JPEG, PNG, TIFF or BMP file") from None


def no_range(error: str) -> str:
    return f"{error}: the model was trained on 8-bit images; convert it as they were, or give predict --range LOW,HIGH"


def _from_picture(data: bytes, info: BundleInfo, window: deep.Range | None) -> Given:
    values = image_files.deep_values(data)
    if values is not None and info.image_kind == "float":
        return Given(_unit(_luma(values.astype(np.float32)), info, window, is_array=False))
    if values is not None:
        window = window or _rule(info) or _evident(values)
    checked = image_files.check_image(data, window=window)
    pixels = image_files.decode_rgb(checked.data)
    if info.image_kind == "float":
        return Given(_luma(pixels).astype(np.float32) / 255, _note(checked))
    return Given(pixels, _note(checked))


def _from_stack(data: bytes, info: BundleInfo, window: deep.Range | None) -> Given:
    """A TIFF of several pages: a volume, or for a model of colour images a stack of them."""
    try:
        stack = tiff_stack.read(data)
    except ValueError as error:
        raise UserError(f"{error}") from None
    pages, note = stack.pages, f"{len(stack.pages)} pages, each a slice"
    if info.image_kind == "float" and stack.is_deep:
        pages = _unit(pages.astype(np.float32), info, window, is_array=False)
    elif info.image_kind == "float":
        pages = np.stack([_luma(page).astype(np.float32) / 255 for page in pages])
    else:
        if stack.is_deep:
            own = deep.extent(pages)
            window = window or _rule(info) or _evident(pages)
            if window is None:
                raise UserError(no_range(f"has values {deep.range_text(own.low, own.high)}"))
            pages = np.stack([deep.to_8bit(page, *window) for page in pages])
        pages = pages if pages.ndim == 4 else np.repeat(pages[..., None], 3, axis=3)
    return Given(pages, note, stack.calibration)


def _note(checked: image_files.Checked) -> str:
    if checked.note == image_files.EXIF_ROTATED:
        return f"turned as its EXIF tag says; its mask is {checked.width} x {checked.height}, as viewers show the image"
    if image_files.TO_8_BITS in checked.note and looks.has_few_levels(checked.grey):
        return f"{checked.note}; {looks.FEW_LEVELS}"
    return checked.note if "clipped" in checked.note else ""


def _rule(info: BundleInfo) -> deep.Range | None:
    """The range of a model of images of more than 8 bits."""
    clip = normalise.only_range(info.intensity)
    return None if clip is None or isinstance(clip[0], str) or isinstance(clip[1], str) else (clip[0], clip[1])


def _evident(values: Values) -> deep.Range | None:
    """The range of values that say themselves what is white: widened bytes, and floats in [0, 1]."""
    own = deep.extent(values)
    if own.is_widened:
        return deep.BYTES_IN_WORDS
    return (0, 1) if own.is_float and _in_unit(own.low, own.high) else None


def _in_unit(low: float, high: float) -> bool:
    return low >= -_SLACK and high <= 1 + _SLACK


def _luma(values: Values) -> Values:
    """(H, W) of (H, W) or (H, W, 3)."""
    return np.asarray(cv2.cvtColor(values, cv2.COLOR_RGB2GRAY)) if values.ndim == 3 else values


def _read_array(data: bytes) -> Values:
    try:
        if data.startswith(_HDF5):
            import h5py

            with h5py.File(io.BytesIO(data), "r") as file:
                return np.asarray(file["image"][:])
        return np.asarray(np.load(io.BytesIO(data), allow_pickle=False))
    except (ValueError, OSError, KeyError, EOFError) as error:
        reason = " ".join(str(error).strip("'\"").split())[:150]
        if "allow_pickle" in reason:  # numpy's advice is to load the file unsafely
            reason = "it holds Python objects, not numbers"
        raise UserError(f"cannot be read ({reason})") from None


def _from_array(array: Values, info: BundleInfo, window: deep.Range | None) -> Given:
    if info.image_kind == "float" and info.channels > 1:
        return Given(_channels_of_array(array, info))
    if info.image_kind == "rgb8" and array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    colour = array.ndim == 3 and array.shape[-1] == 3
    fits = array.ndim == 2 or (colour if info.image_kind == "rgb8" else array.ndim == 3)
    if not fits or array.dtype.kind not in "uif" or 0 in array.shape:
        axes = "(H, W) or (H, W, 3)" if info.image_kind == "rgb8" else "(H, W) or (D, H, W)"
        what = "; the model takes colour images" if info.image_kind == "rgb8" else ""
        raise UserError(f"must be numbers of shape {axes}, is {array.dtype} {array.shape}{what}")
    if info.image_kind == "float":
        if colour and min(array.shape[:2]) > 16:
            raise UserError(f"is a colour picture {array.shape}, not a volume (D, H, W); the model takes one channel")
        by_statistics = not all(rule.is_fixed for rule in normalise.rules_of(info.intensity) or ())
        alone = array.ndim == 2 and by_statistics and not _in_unit(float(array.min()), float(array.max()))
        return Given(_unit(array, info, window, is_array=True), ALONE if alone else "")
    if array.dtype != np.uint8:
        array = np.rint(_unit(array, info, window, is_array=True) * np.float64(255)).clip(0, 255).astype(np.uint8)
    return Given(np.ascontiguousarray(array if colour else np.repeat(array[..., None], 3, axis=2)))


def _channels_of_array(array: Values, info: BundleInfo) -> NDArray[np.float32]:
    """(H, W, C) or (D, H, W, C): in [0, 1] as it is, if that is what the model's rules make, else by these."""
    count = info.channels
    if array.ndim not in (3, 4) or array.shape[-1] != count or array.dtype.kind not in "uif" or 0 in array.shape:
        raise UserError(
            f"must be numbers of shape (H, W, {count}) or (D, H, W, {count}), is {array.dtype} {array.shape}; the "
            f"model takes {predict_channels.in_words(info)}, which come last"
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise UserError("holds NaN or infinite values; replace them")
    rules = normalise.rules_of(info.intensity) or []
    in_unit = array.dtype != np.uint8 and _in_unit(float(array.min()), float(array.max()))
    if in_unit and all(rule.is_range and not _of_unit(rule.clip) for rule in rules):
        return array.astype(np.float32)
    return predict_channels.normalised(list(np.moveaxis(array, -1, 0)), info)


def _unit(values: Values, info: BundleInfo, window: deep.Range | None, *, is_array: bool) -> NDArray[np.float32]:
    """Values of any range in [0, 1], by what this module's docstring says."""
    is_float = values.dtype.kind == "f"
    if is_float and not np.isfinite(values).all():
        raise UserError("holds NaN or infinite values; replace them")
    low, high = float(values.min()), float(values.max())
    rules = normalise.rules_of(info.intensity)
    if rules and not rules[0].is_range:
        return predict_channels.normalised([values], info)
    clip = window or normalise.only_range(info.intensity)
    if _in_unit(low, high) and (is_array or is_float) and not _of_unit(clip):
        return values.astype(np.float32)
    if values.dtype == np.uint8:
        return values.astype(np.float32) / np.float32(255)
    if clip is None and not is_array and deep.is_widened(values.astype(np.int64)):
        clip = deep.BYTES_IN_WORDS
    if clip is None:
        raise UserError(
            f"values must lie in [0, 1], they go from {low:g} to {high:g}, and the model has no rule for raw ones; "
            "scale them as its training data were, or give predict --range LOW,HIGH"
        )
    bottom, top = intensity.window(values, *clip)
    if info.image_kind == "float" and is_array and is_float and max(-low, high) < 0.1 * (top - bottom):
        raise UserError(
            f"values go from {low:g} to {high:g}: neither in [0, 1] nor raw ones of the model's window "
            f"{deep.range_text(bottom, top)}"
        )
    try:
        return intensity.scaled(values, bottom, top)
    except ValueError as error:
        raise UserError(f"{error}; give an image with contrast") from None


def _of_unit(clip: Any) -> bool:
    """Whether a rule is for raw values that lie in [0, 1] themselves, float TIFFs for instance."""
    return clip is not None and not isinstance(clip[1], str) and clip[1] <= 1 + _SLACK
