"""Images of more than 8 bits a channel: told from their header, read as they are stored, brought to 8 bits by a range.

A scanner's or camera's 10, 12 or 14 bits lie in 16-bit files, so that the type says nothing of the range of values. One
range belongs to a whole data set, and to the model that was trained on it: scaled by its own range, an image would come
out brighter or darker than the others.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rwkvctl.base.errors import UserError

Range = tuple[float, float]
"""The stored values that become black and white."""
Values = NDArray[Any]

BYTES_IN_WORDS: Range = (0, 65535)
"""Of 8-bit values that were widened to 16 bits: each is a multiple of 257."""

_PNG_DEPTH = 24  # the place of the bit depth in a PNG's header
_BITS, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0


class Extent(NamedTuple):
    """The least and the greatest value of an image, and what kind of numbers it holds."""

    low: float
    high: float
    is_float: bool
    is_widened: bool
    """8-bit values in 16 bits."""


def may_be_deep(head: bytes) -> bool:
    """False when the first 32 bytes of a file rule out more than 8 bits a channel; of a TIFF they do not."""
    if head.startswith(b"\x89PNG"):
        return head[_PNG_DEPTH : _PNG_DEPTH + 1] == b"\x10"
    return head.startswith((b"II*\0", b"MM\0*"))


def is_deep(data: bytes, image: Image.Image) -> bool:
    """Whether a file has more than 8 bits a channel; Pillow opens 16-bit colour as 8-bit without a word."""
    if image.mode.startswith(("I", "F")):
        return True
    if image.format == "TIFF":
        return max(image.tag_v2.get(_BITS) or (8,)) > 8  # type: ignore[attr-defined]
    return image.format == "PNG" and may_be_deep(data[:32])


def stored_values(data: bytes, image: Image.Image | None) -> Values:
    """The stored numbers of a deep image, (H, W) or (H, W, 3), upright.

    image: the file as Pillow opened it; None for a TIFF of a kind that Pillow does not know.
    ValueError where it is not clear what they mean.
    """
    if image is not None and image.mode.startswith(("I", "F")):
        if image.format == "TIFF" and image.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:  # type: ignore[attr-defined]
            raise ValueError("a TIFF of more than 8 bits in which 0 is white; save it with black as 0")
        return np.asarray(image)
    pixels: Any = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise ValueError("an image of more than 8 bits that cannot be decoded")
    if pixels.ndim == 3:
        pixels = pixels[..., :3][..., ::-1]  # OpenCV's BGR, and no alpha
        if (pixels == pixels[..., :1]).all():
            pixels = pixels[..., 0]
    if image is not None and pixels.shape[:2] != (image.height, image.width):
        raise ValueError("a colour image of more than 8 bits with an orientation tag; save it upright")
    return np.ascontiguousarray(pixels)


def extent(values: Values) -> Extent:
    """The extent of an image's values; ValueError for NaN and infinite ones."""
    is_float = values.dtype.kind == "f"
    if is_float and not np.isfinite(values).all():
        raise ValueError("has pixels that are NaN or infinite")
    return Extent(float(values.min()), float(values.max()), is_float, is_widened(values))


def is_widened(values: Values) -> bool:
    """Whether these are 8-bit values in 16 bits."""
    return values.dtype.kind in "ui" and values.min() >= 0 and values.max() <= 65535 and not (values % 257).any()


def to_8bit(values: Values, low: float, high: float) -> NDArray[np.uint8]:
    """[low, high] to 0..255, rounded; what lies outside is clipped."""
    return np.rint(np.clip((values.astype(np.float64) - low) / (high - low), 0, 1) * 255).astype(np.uint8)


def range_text(low: float, high: float) -> str:
    """`0..4095`, as messages and notes give a range."""
    return f"{low:g}..{high:g}"


def parse_range(text: str) -> Range:
    """The option `--range LOW,HIGH`; UserError for what is no such pair."""
    try:
        low, high = (float(part) for part in text.split(","))
        ascend = bool(np.isfinite([low, high]).all()) and low < high
    except ValueError:
        ascend = False
    if not ascend:
        raise UserError(f"--range {text}: give two numbers, the smaller first, for example 0,4095")
    return low, high
