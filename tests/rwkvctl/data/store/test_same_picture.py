"""What is the same picture and what is not, on retinas that share a layout and differ in their vessels."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable

import cv2
import numpy as np
import pytest
from PIL import Image

from rwkvctl.data.store.same_picture import same_picture, thumbnail

SIDE = 192


def retina(seed: int) -> np.ndarray:
    """A bright disc with an optic nerve and a macula at nearly the same place, and random vessels."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIDE, :SIDE] - SIDE / 2
    radius = np.hypot(y, x) / (0.47 * SIDE)
    nerve = np.exp(-((x - 0.22 * SIDE) ** 2 + (y - rng.normal(0, 3)) ** 2) / (0.06 * SIDE) ** 2)
    macula = np.exp(-((x + 0.12 * SIDE) ** 2 + y**2) / (0.08 * SIDE) ** 2)
    vessels = np.zeros((SIDE, SIDE), np.float32)
    for _ in range(9):
        at, angle = np.array([0.72 * SIDE, 0.5 * SIDE]), rng.uniform(0, 2 * np.pi)
        for _ in range(110):
            angle += rng.normal(0, 0.12)
            end = at + 1.5 * np.array([np.cos(angle), np.sin(angle)])
            cv2.line(vessels, at.astype(int).tolist(), end.astype(int).tolist(), 1, 2)
            at = end
    grey = 0.7 - 0.25 * radius**2 + 0.25 * nerve - 0.12 * macula - 0.22 * cv2.GaussianBlur(vessels, (0, 0), 1)
    colour = (grey + rng.normal(0, 0.012, grey.shape))[..., None] * [1, 0.6, 0.35]
    return (np.clip(colour * (radius < 1)[..., None], 0, 1) * 255).astype(np.uint8)


def encoded(pixels: np.ndarray, kind: str = "PNG", **options: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


RETINAS = [retina(seed) for seed in range(12)]
CHANGES: dict[str, Callable[[np.ndarray], bytes]] = {
    "jpeg": lambda pixels: encoded(pixels, "JPEG", quality=30),
    "brighter": lambda pixels: encoded(np.clip(pixels * 1.2 + 5.0, 0, 255).astype(np.uint8)),
    "half": lambda pixels: encoded(cv2.resize(pixels, (SIDE // 2, SIDE // 2), interpolation=cv2.INTER_AREA)),
    "cropped": lambda pixels: encoded(pixels[6:-4, 8:].copy(), "JPEG", quality=70),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_picture_that_was_changed_a_little_is_the_same(change: str):
    for pixels in RETINAS[:4]:
        assert same_picture(thumbnail(encoded(pixels)), thumbnail(CHANGES[change](pixels)))


@pytest.mark.parametrize("turned", [np.fliplr, np.flipud, np.rot90])
def test_a_picture_that_was_turned_is_another(turned: Callable[[np.ndarray], np.ndarray]):
    """As the documentation says."""
    for pixels in RETINAS[:4]:
        assert not same_picture(thumbnail(encoded(pixels)), thumbnail(encoded(turned(pixels).copy())))


def test_pictures_of_one_kind_are_different():
    thumbnails = [thumbnail(encoded(pixels)) for pixels in RETINAS]
    assert not any(same_picture(a, b) for a, b in itertools.combinations(thumbnails, 2))


def test_pictures_without_structure():
    black, grey = (encoded(np.full((40, 40, 3), level, np.uint8)) for level in (0, 90))
    assert same_picture(thumbnail(black), thumbnail(black))
    assert not same_picture(thumbnail(black), thumbnail(grey))
