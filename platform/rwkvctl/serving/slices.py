"""Image and mask as a page draws them: a line of JSON, then the image's bytes, then the mask's.

`{"depth": D, "height": H, "width": W, "channels": 1 | 3, ...}`, uint8 (D, H, W, channels), uint8 (D, H, W).
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwkvctl.models.inference import Volume

MOST = 1 << 25
"""Voxels that are sent; of larger volumes every second, third... pixel of every slice."""


def encode(image: Volume, mask: NDArray[np.uint8], about: dict[str, Any]) -> bytes:
    """Of an image, uint8 (H, W, 3) or float (H, W) in [0, 1], or a volume (D, H, W), with its mask (H, W) or (D, H, W).
    `about` goes into the line of JSON."""
    masks = mask if mask.ndim == 3 else mask[None]
    shape = image.shape if mask.ndim == 3 else (1, *image.shape)
    step = next(step for step in range(1, 1 << 16) if size(shape, step) <= MOST)
    shown = [as_bytes((image[z] if mask.ndim == 3 else image[...])[::step, ::step]) for z in range(len(masks))]
    masks = masks[:, ::step, ::step]
    depth, height, width = masks.shape
    head = {"depth": depth, "height": height, "width": width, "channels": 3 if len(shape) == 4 else 1, "every": step}
    return json.dumps(head | about).encode() + b"\n" + b"".join(shown) + masks.tobytes()


def size(shape: tuple[int, ...], step: int) -> int:
    """Values that are left of (D, H, W) or (D, H, W, 3)."""
    depth, height, width, *channels = shape
    return int(np.prod([depth, -(-height // step), -(-width // step), *channels]))


def as_bytes(pixels: NDArray[Any]) -> bytes:
    if pixels.dtype != np.uint8:
        pixels = np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8)
    return pixels.tobytes()
