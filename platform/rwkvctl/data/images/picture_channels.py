"""A picture's file as channels in the numbers that it stores, for images that are put together of several files."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwkvctl.data.images import deep
from rwkvctl.data.images import files as image_files

COLOURS = ("R", "G", "B")


def channels_of(data: bytes) -> NDArray[Any]:
    """(H, W, 1) of a grey picture, (H, W, 3) of one in colour, upright: bytes as they are, or the numbers of more than
    8 bits. A picture of three equal colours is grey. ValueError for what is no image."""
    values = image_files.deep_values(data)
    if values is None:
        values = image_files.decode_rgb(image_files.check_image(data).data)
    if values.ndim == 3 and (values == values[..., :1]).all():
        values = values[..., 0]
    return values[..., None] if values.ndim == 2 else values


def fitted(channels: NDArray[Any], count: int) -> NDArray[Any]:
    """(H, W, count) of 1 or 3 channels: grey is repeated for colours; ValueError for colours where one is wanted."""
    if channels.shape[2] == count:
        return channels
    if channels.shape[2] == 1 and count == len(COLOURS):
        return np.repeat(channels, count, axis=2)
    raise ValueError(f"is in colour, where an image has {count} channel here; save it in grey")


def extent(channels: NDArray[Any]) -> deep.Range | None:
    """The least and the greatest number of a picture of more than 8 bits; None for bytes. ValueError for NaN and
    infinite ones."""
    if channels.dtype == np.uint8:
        return None
    found = deep.extent(channels)
    return found.low, found.high
