"""The overlay shows three panels and draws each class on the border of its own region only."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from rwkvctl.pictures.overlays import GAP, overlay_png
from rwkvctl.pictures.palette import palette


def decode(png: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR_RGB)


def panels(picture: np.ndarray, width: int) -> list[np.ndarray]:
    return [picture[:, start : start + width] for start in range(0, picture.shape[1], width + GAP)]


@pytest.mark.parametrize("kind", ["rgb8", "float"])
def test_panels(kind: str) -> None:
    height, width = 300, 280
    image = np.random.default_rng(0).integers(0, 60, (height, width, 3), np.uint8)
    if kind == "float":
        image = image[..., 0].astype(np.float32) / 60 - 0.3
    truth, pred = np.zeros((height, width), np.uint8), np.zeros((height, width), np.uint8)
    truth[50:100, 50:100], pred[60:110, 50:100] = 1, 2
    truth[0, 0] = 255
    picture = decode(overlay_png(image, truth, pred))
    assert picture.shape == (height, 3 * width + 2 * GAP, 3)
    plain, with_truth, with_pred = panels(picture, width)
    for panel, labels, colour in ((with_truth, truth, palette()[1]), (with_pred, pred, palette()[2])):
        changed = (panel != plain).any(axis=2)
        assert (panel[changed] == colour).all()
        region = (labels != 0) & (labels != 255)
        assert (changed <= region).all()
        inner = cv2.erode(region.astype(np.uint8), np.ones((5, 5), np.uint8)).astype(bool)
        assert not changed[inner].any()
        assert changed.sum() == (region & ~inner).sum() > 0


def test_small_and_flat_images_are_drawn() -> None:
    flat = np.zeros((20, 30), np.float32)
    labels = np.ones((20, 30), np.uint8)
    picture = decode(overlay_png(flat, labels, labels))
    assert picture.shape == (260, 3 * 390 + 2 * GAP, 3)
    assert (panels(picture, 390)[1][0] == palette()[1]).all()
