"""Image and mask as a page draws them: a line of JSON, then the image's bytes, then the mask's.

`{"depth": D, "height": H, "width": W, "channels": 1 | 3, ...}`, uint8 (D, H, W, channels), uint8 (D, H, W).
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwkvctl.models.inference import Volume
from rwkvctl.pictures.overlays import shown_channel

SLACK = 0.01
"""How far values of [0, 1] may lie outside, from resampling."""
MOST = 1 << 25
"""Voxels that are sent; of larger volumes every second, third... pixel of every slice."""


def encode(image: Volume, mask: NDArray[np.uint8], about: dict[str, Any]) -> bytes:
    """Of an image, uint8 (H, W, 3) or float (H, W[, C]), or a volume (D, H, W[, C]), with its mask (H, W) or (D, H, W).
    Of several channels that are no colours the first is shown. `about` goes into the line of JSON."""
    masks = mask if mask.ndim == 3 else mask[None]
    channels = image.shape[-1] if image.ndim > mask.ndim else 1
    colours = (channels,) if channels > 1 and image.dtype == np.uint8 else ()
    shape = (*masks.shape, *colours)
    step = next(step for step in range(1, 1 << 16) if size(shape, step) <= MOST)
    planes = (image[z] if mask.ndim == 3 else image[...] for z in range(len(masks)))
    shown = in_unit([shown_channel(plane, channels)[::step, ::step] for plane in planes])
    masks = masks[:, ::step, ::step]
    depth, height, width = masks.shape
    head = {"depth": depth, "height": height, "width": width, "channels": 3 if colours else 1, "every": step}
    return json.dumps(head | about).encode() + b"\n" + b"".join(map(as_bytes, shown)) + masks.tobytes()


def in_unit(planes: list[NDArray[Any]]) -> list[NDArray[Any]]:
    """Planes in [0, 1] as they are, and bytes; numbers in deviations from a mean from their least to their greatest."""
    if planes[0].dtype == np.uint8:
        return planes
    low, high = float(min(plane.min() for plane in planes)), float(max(plane.max() for plane in planes))
    if low >= -SLACK and high <= 1 + SLACK:
        return planes
    return [(plane - low) / ((high - low) or 1.0) for plane in planes]


def size(shape: tuple[int, ...], step: int) -> int:
    """Values that are left of (D, H, W) or (D, H, W, 3)."""
    depth, height, width, *channels = shape
    return int(np.prod([depth, -(-height // step), -(-width // step), *channels]))


def as_bytes(pixels: NDArray[Any]) -> bytes:
    if pixels.dtype != np.uint8:
        pixels = np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8)
    return pixels.tobytes()
