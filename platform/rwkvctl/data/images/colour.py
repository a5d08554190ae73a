"""Colour steps of augmentation, on float32 pixels of the range 0..1, image only.

The formulas are torchvision's; in numpy, because a mean that torch takes in several threads differs in its last bit
with their number, and a sample must be the same in a loader worker and in the main process.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]

_LUMA = np.array([0.2989, 0.587, 0.114], np.float32)


def brightness(image: Float, factor: float) -> Float:
    """Blend with black."""
    return np.clip(image * np.float32(factor), 0, 1)


def contrast(image: Float, factor: float) -> Float:
    """Blend with the mean grey of the image, (H, W, 3) or (H, W)."""
    mean = np.float32(grey(image).mean(dtype=np.float64))
    return _blend(image, mean, factor)


def saturation(image: Float, factor: float) -> Float:
    """Blend (H, W, 3) with its own grey."""
    return _blend(image, grey(image)[..., None], factor)


def grey(image: Float) -> Float:
    """Luma (H, W) of (H, W, 3); a grey image is its own."""
    if image.ndim == 2:
        return image
    return image[..., 0] * _LUMA[0] + image[..., 1] * _LUMA[1] + image[..., 2] * _LUMA[2]


def _blend(image: Float, other: Float | np.float32, factor: float) -> Float:
    ratio = np.float32(factor)
    return np.clip(ratio * image + (np.float32(1) - ratio) * other, 0, 1)


def to_float(image: NDArray[np.uint8] | Float) -> Float:
    """0..255 to 0..1."""
    return image.astype(np.float32) / np.float32(255)


def to_uint8(image: Float) -> NDArray[np.uint8]:
    return np.rint(image * np.float32(255)).astype(np.uint8)


def jitter(image: NDArray[np.uint8], strength: float, rng: np.random.Generator) -> NDArray[np.uint8]:
    """torchvision's ColorJitter(strength, strength, strength): brightness, contrast, saturation in random order."""
    low, high = max(0.0, 1 - strength), 1 + strength
    steps = (brightness, contrast, saturation)
    factors = rng.uniform(low, high, 3)
    pixels = to_float(image)
    for step in rng.permutation(3):
        pixels = steps[step](pixels, float(factors[step]))
    return to_uint8(pixels)
