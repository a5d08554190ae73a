"""Whether two images show the same picture, where their perceptual hashes agree.

Small grey copies are freed of what images of one kind have in common (the bright disc of a retinal photograph, the fan
of an ultrasound): of each only the fine structure is kept, its contrast made even. Two pictures are the same if the
middle of one is found in the other, at nearly its size and place. Re-encoding, brightness and a slight crop leave that
so (correlations of 0.89 and more on synthetic retinas); other vessels do not (0.49 at most).
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from rwkvctl.data.images import files as image_files

Thumbnail = NDArray[np.float32]

SIDE = 64
_LARGE = 2 * SIDE
_MARGIN = 12
_SCALES = (1.0, 1.03, 0.97, 1.06, 0.94, 1.09, 0.91, 1.12, 0.88)
"""Of one picture against the other, the likely ones first: what a crop of up to a tenth makes of it."""
LEAST = 0.75
"""The correlation from which two pictures are the same."""
_EQUAL = 1.0
"""Grey levels by which copies of a picture without any structure (a black one) may differ, on average."""


def thumbnail(data: bytes) -> Thumbnail:
    """Grey (128, 128) of a JPEG or PNG; ValueError when it cannot be read."""
    pixels = image_files.decode_rgb(data, (_LARGE, _LARGE))
    return _resized(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY).astype(np.float32), _LARGE)


def same_picture(first: Thumbnail, second: Thumbnail) -> bool:
    """Whether two thumbnails are of the same picture."""
    if float(np.abs(first - second).mean()) <= _EQUAL:
        return True
    whole = _structure(_resized(first, SIDE))
    if _is_flat(whole):  # nothing to see
        return False
    scores = []
    for scale in _SCALES:
        scores.append(_found(second, scale, whole))
        if scores[-1] >= LEAST:
            return True
    best = _SCALES[int(np.argmax(scores))]
    return any(_found(second, best + step, whole) >= LEAST for step in (-0.015, 0.015))


def _found(picture: Thumbnail, scale: float, whole: Thumbnail) -> float:
    """The best correlation of the middle of `picture`, scaled, with a part of `whole`."""
    side = round(SIDE * scale)
    half = SIDE // 2 - _MARGIN
    at = side // 2 - half
    middle = _structure(_resized(picture, side))[at : at + 2 * half, at : at + 2 * half]
    if _is_flat(middle):
        return -1.0
    return float(cv2.matchTemplate(whole, np.ascontiguousarray(middle), cv2.TM_CCOEFF_NORMED).max())


def _is_flat(structure: Thumbnail) -> bool:
    return float(cv2.meanStdDev(structure)[1][0, 0]) < 1e-3


def _structure(grey: Thumbnail) -> Thumbnail:
    fine = grey - cv2.GaussianBlur(grey, (0, 0), 3)
    contrast = np.sqrt(cv2.GaussianBlur(fine * fine, (0, 0), 6))
    return np.asarray(fine / (contrast + 2), np.float32)


def _resized(grey: Any, side: int) -> Thumbnail:
    return np.asarray(cv2.resize(grey, (side, side), interpolation=cv2.INTER_AREA), np.float32)
