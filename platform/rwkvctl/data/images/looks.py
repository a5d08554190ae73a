"""What an image looks like in a few numbers: its perceptual hash, how often it has which value, and whether it shows
anything at all. A grey copy of it is `files.grey_copy`, or comes with an image that was checked."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

FEWEST_LEVELS = 32
FEW_LEVELS = f"fewer than {FEWEST_LEVELS} grey levels"
"""What is noted of an image that is black, flat, or was brought to 8 bits by a range that is not its own."""
_HASHED = 32
_ALONG = np.array([2**0.5] + [1.0] * 7)
_NOT_NORMALISED = np.outer(_ALONG, _ALONG)
"""OpenCV's transform is orthonormal: it divides the constant along an axis by the root of two."""


def perceptual_hash(grey: Image.Image) -> str:
    """64 bits as hex digits, nearly equal for images that look the same: pHash, as the library imagehash makes it.

    Of the picture at 32 x 32 px the 8 x 8 lowest frequencies, and of each whether it is above their median. Made here,
    because imagehash takes its transform from SciPy, which takes longer to import than hundreds of images to convert.
    """
    small = np.asarray(grey.resize((_HASHED, _HASHED), Image.Resampling.LANCZOS), np.float64)
    low = cv2.dct(small)[:8, :8] * _NOT_NORMALISED
    middle = np.partition(low, (31, 32), axis=None)[31:33]  # np.median takes longer than all else here
    return np.packbits(low > middle.mean()).tobytes().hex()


def has_few_levels(grey: Image.Image) -> bool:
    """Whether an image has so few values that it shows next to nothing; see `FEW_LEVELS`."""
    return sum(map(bool, grey.histogram())) < FEWEST_LEVELS


def counts_of(values: NDArray[np.uint8] | NDArray[np.uint16]) -> NDArray[np.int64]:
    """How often each value occurs, by value: at least 256 counts. Of uint8 ten times as fast as `np.bincount`, which
    makes eight bytes of each first."""
    if values.dtype != np.uint8 or not values.size:
        return np.bincount(values.ravel(), minlength=256)
    return np.array(Image.fromarray(values.reshape(-1, values.shape[-1])).histogram(), np.int64)
