"""What is shown of a case: one slice with truth and prediction, or a volume to scroll through, both bounded in size."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rwkvctl.pictures.overlays import contours, enlarged, enlargement, shown_channel, to_rgb
from rwkvctl.pictures.palette import palette

LARGEST_SIDE = 768
"""Pixels; larger slices are shown smaller."""
MOST_SLICES, LARGEST_SLICE = 96, 320
"""Slices of a volume, and pixels on their longer side; of larger ones every second, third, ... slice, made smaller."""
JPEG_QUALITY = 88
Ids = NDArray[np.uint8]


class Slice(NamedTuple):
    """An image, or one slice of a volume."""

    key: str
    image: NDArray[np.uint8]
    """(H, W, 3)."""
    truth: Ids
    pred: Ids
    z: int | None = None
    depth: int | None = None

    @property
    def place(self) -> str:
        return "" if self.z is None else f"slice {self.z + 1} of {self.depth}"


class Stack(NamedTuple):
    """Slices of a volume."""

    key: str
    zs: list[int]
    images: NDArray[np.uint8]
    """(N, H, W), grey."""
    truth: Ids
    pred: Ids
    shape: tuple[int, ...]
    """Of the whole volume, (D, H, W)."""

    @property
    def left_out(self) -> str:
        """What is not shown of the volume; empty where all of it is."""
        said = []
        if len(self.zs) < self.shape[0]:
            said.append(f"{len(self.zs)} of {self.shape[0]} slices, evenly spread")
        if self.images.shape[1:] != self.shape[1:]:
            old, new = ("x".join(map(str, shape[::-1])) for shape in (self.shape[1:], self.images.shape[1:]))
            said.append(f"slices of {old} shown as {new} pixels")
        return "; ".join(said)


def slice_of(key: str, image: NDArray[Any], truth: Ids, pred: Ids) -> Slice:
    """Of a volume (D, H, W) the slice with the most foreground in truth and prediction."""
    z = depth = None
    if truth.ndim == 3:
        z, depth = int((foreground(truth) + foreground(pred)).argmax()), len(truth)
        image, truth, pred = image[z], truth[z], pred[z]
    size = smaller(truth.shape, LARGEST_SIDE)
    rgb = np.asarray(resized(to_rgb(image), size, cv2.INTER_AREA), np.uint8)
    truth, pred = (resized(each, size, cv2.INTER_NEAREST_EXACT) for each in (truth, pred))
    return Slice(key, rgb, truth, pred, z, depth)


def stack_of(key: str, image: NDArray[Any], truth: Ids, pred: Ids) -> Stack:
    """image: float (D, H, W[, C]), of which only the slices that are shown are read, and the first channel."""
    step = -(-len(truth) // MOST_SLICES)
    zs = list(range(0, len(truth), step))
    size = smaller(truth.shape[1:], LARGEST_SLICE)
    channels = 1 if image.ndim == 3 else image.shape[-1]
    planes = (np.asarray(shown_channel(image[z], channels), np.float32) for z in zs)
    grey = np.stack([resized(plane, size, cv2.INTER_AREA) for plane in planes])
    low, high = np.nanpercentile(grey, [0.5, 99.5])
    scaled = np.nan_to_num((grey - low) / (high - low or 1.0)).clip(0, 1) * 255
    ids = [np.stack([resized(each[z], size, cv2.INTER_NEAREST_EXACT) for z in zs]) for each in (truth, pred)]
    return Stack(key, zs, scaled.round().astype(np.uint8), ids[0], ids[1], truth.shape)


def foreground(labels: Ids) -> NDArray[np.int64]:
    """Voxels of each slice; 255 (ignored) is none."""
    return np.asarray(((labels > 0) & (labels != 255)).sum(axis=(1, 2)))


def smaller(shape: Sequence[int], largest: int) -> tuple[int, int]:
    """(width, height) of a picture whose longer side is `largest` at most."""
    scale = min(1.0, largest / max(shape))
    return max(1, round(shape[1] * scale)), max(1, round(shape[0] * scale))


def resized(picture: NDArray[Any], size: tuple[int, int], how: int) -> NDArray[Any]:
    return picture if picture.shape[1::-1] == size else np.asarray(cv2.resize(picture, size, interpolation=how))


# As files -----------------------------------------------------------------------------------------------------------


def photo(image: NDArray[np.uint8]) -> bytes:
    """A JPEG of (H, W, 3) or (H, W)."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def outlines(labels: Ids) -> bytes:
    """A PNG of the outlines of all classes, transparent elsewhere; small ones are enlarged, as their lines must be
    thin."""
    return transparent(contours(enlarged(labels, enlargement(labels.shape))))


def transparent(labels: Ids) -> bytes:
    """A palette PNG of class ids in their colours, the background transparent."""
    picture = Image.fromarray(labels)
    picture.putpalette(palette().ravel().tolist())
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", transparency=bytes([0]) + bytes([255]) * 254 + bytes([0]), optimize=True)
    return buffer.getvalue()
