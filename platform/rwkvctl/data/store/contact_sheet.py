"""A contact sheet: what the images and masks of a data set look like, at one glance."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from rwkvctl.data.store.manifest import Manifest
from rwkvctl.data.store.reader import Reader
from rwkvctl.pictures import overlays

TILE = 192
COLUMNS = 6


def contact_sheet(manifest: Manifest, rows: int = 5) -> bytes:
    """A PNG of 6 x `rows` samples, evenly spread over the data set, with the outlines of their classes."""
    reader = Reader(manifest)
    count = min(COLUMNS * rows, len(reader))
    chosen = np.linspace(0, len(reader) - 1, count).round().astype(int)
    return sheet_of([_tile(manifest, reader, int(row)) for row in chosen])


def sheet_of(tiles: list[NDArray[np.uint8]]) -> bytes:
    """A PNG of tiles in rows of six."""
    tiles = tiles + [np.full((TILE, TILE, 3), 255, np.uint8)] * (-len(tiles) % COLUMNS)
    lines = [np.hstack(tiles[start : start + COLUMNS]) for start in range(0, len(tiles), COLUMNS)]
    written, data = cv2.imencode(".png", np.vstack(lines)[..., ::-1])
    assert written
    return data.tobytes()


def _tile(manifest: Manifest, reader: Reader, row: int) -> NDArray[np.uint8]:
    labelled = reader.has(row, "mask.png") or reader.has(row, "mask.npy")
    image = overlays.shown_channel(reader.image(row), manifest.channels)
    return tile(image, reader.mask(row) if labelled else None)


def tile(image: NDArray[Any], labels: NDArray[Any] | None) -> NDArray[np.uint8]:
    """A sample in a square, with the outlines of `labels`; of a volume the slice with most foreground."""
    if image.dtype != np.uint8 and image.ndim == 3:
        z = len(image) // 2 if labels is None else int(np.argmax((labels > 0).sum(axis=(1, 2))))
        image, labels = image[z], None if labels is None else labels[z]
    rgb = overlays.to_rgb(image)
    scale = TILE / max(rgb.shape[:2])
    width, height = max(1, round(rgb.shape[1] * scale)), max(1, round(rgb.shape[0] * scale))
    rgb = np.asarray(cv2.resize(rgb, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
    if labels is not None:
        small = cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
        rgb = overlays.with_contours(rgb, np.asarray(small))
    square = np.full((TILE, TILE, 3), 255, np.uint8)
    square[:height, :width] = rgb
    return square
