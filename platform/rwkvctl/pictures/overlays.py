"""A picture to judge a segmentation by: the image, the truth on it, the prediction on it."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from rwkvctl.pictures.captions import Caption, captioned
from rwkvctl.pictures.palette import palette

GAP = 4
MIN_SIDE = 256
"""Smaller images are enlarged to this many pixels on the shorter side."""


def overlay_png(
    image: NDArray[Any],
    truth: NDArray[Any],
    pred: NDArray[Any],
    *,
    min_side: int = MIN_SIDE,
    caption: Caption | None = None,
) -> bytes:
    """A PNG of image | contours of the truth | contours of the prediction, one colour a class.

    Args:
        image: uint8 (H, W, 3), or float (H, W), whose range is stretched to the grey scale.
        truth, pred: labels (H, W), 0 the background; 255 (ignored) is not drawn.
        min_side: smaller images are enlarged to this many pixels on the shorter side.
        caption: what to write above and below.
    """
    return _side_by_side(image, [truth, pred], min_side, caption)


def preview_png(image: NDArray[Any], pred: NDArray[Any], *, min_side: int = 256) -> bytes:
    """A PNG of image | contours of the prediction."""
    return _side_by_side(image, [pred], min_side)


def _side_by_side(
    image: NDArray[Any], labels: list[NDArray[Any]], min_side: int, caption: Caption | None = None
) -> bytes:
    assert all(image.shape[:2] == each.shape for each in labels), (image.shape, [each.shape for each in labels])
    rgb = to_rgb(image)
    scale = enlargement(rgb.shape, min_side)
    rgb = enlarged(rgb, scale)
    gap = np.full((rgb.shape[0], GAP, 3), 255, np.uint8)
    panels = [panel for each in labels for panel in (gap, with_contours(rgb, enlarged(each, scale)))]
    picture = np.hstack([rgb, *panels])
    if caption is not None:
        picture = captioned(picture, caption)
    written, data = cv2.imencode(".png", picture[..., ::-1])
    assert written
    return data.tobytes()


def to_rgb(image: NDArray[Any]) -> NDArray[np.uint8]:
    """uint8 (H, W, 3); float slices (H, W), or the first channel of (H, W, C), are stretched from their least to their
    greatest value."""
    if image.dtype == np.uint8 and image.ndim == 3:
        return image
    image = shown_channel(image, 1 if image.ndim == 2 else image.shape[-1])
    low, high = float(np.nanmin(image)), float(np.nanmax(image))
    grey = np.nan_to_num((image - low) / (high - low or 1.0)) * 255
    return np.repeat(grey.round().astype(np.uint8)[..., None], 3, axis=2)


def shown_channel(image: NDArray[Any], channels: int) -> NDArray[Any]:
    """What a picture shows of an image or a volume whose last axis are `channels`: the first; all of a photograph."""
    return image[..., 0] if channels > 1 and image.dtype != np.uint8 else image


def enlargement(shape: tuple[int, ...], min_side: int = MIN_SIDE) -> int:
    """How many times a small picture is enlarged."""
    return max(1, -(-min_side // min(shape[:2])))


def enlarged(picture: NDArray[Any], scale: int) -> NDArray[Any]:
    return picture.repeat(scale, axis=0).repeat(scale, axis=1)


def with_contours(rgb: NDArray[np.uint8], labels: NDArray[Any]) -> NDArray[np.uint8]:
    """A copy of `rgb` (H, W, 3) with the outline of every class of `labels` (H, W) in its colour."""
    lines = contours(labels)
    return np.where(lines[..., None] > 0, palette()[lines], rgb)


def contours(labels: NDArray[Any]) -> NDArray[np.uint8]:
    """Of `labels` (H, W) the outline of every class alone, 0 elsewhere; 255 (ignored) has none."""
    lines = np.zeros(labels.shape, np.uint8)
    for class_id in np.unique(labels):
        if class_id not in (0, 255):
            lines[_contour(labels == class_id)] = class_id
    return lines


def _contour(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The pixels of a mask that touch its outside, two deep; the border of the image is outside."""
    padded = np.pad(mask.astype(np.uint8), 1)
    inside = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=2)
    return mask & ~inside[1:-1, 1:-1].astype(bool)
