"""timm's RandAugment on uint8 arrays (H, W, 3): its policy and its choices, its pixel operations by OpenCV.

timm works on Pillow images, whose affine maps and histograms take most of a training sample's time. What is here gives
the same pixels for operations on single values, one level off where a blend rounds, and about half a level off on
average where pixels are interpolated (OpenCV also smooths the edge towards the fill colour).
Operations that are not here run in Pillow.
"""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Callable, Iterator
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]
RandAugment = Callable[[Pixels, np.random.Generator], Pixels]

_VALUES = np.arange(256)


def rand_augment(policy: str, size: tuple[int, int], interpolation: str) -> RandAugment:
    """The transform of a policy string such as `rand-m9-mstd0.5-inc1` for images of `size`.

    interpolation: bilinear, bicubic, or random for either by chance.
    """
    from timm.data.auto_augment import rand_augment_transform
    from timm.data.transforms import str_to_pil_interp

    options: dict[str, Any] = {"translate_const": int(min(size) * 0.45), "img_mean": (124, 116, 104)}
    if interpolation != "random":
        options["interpolation"] = str_to_pil_interp(interpolation)
    transform = rand_augment_transform(policy, options)
    weights = transform.choice_weights
    for op in transform.ops:
        op.aug_fn = OPERATIONS.get(op.aug_fn.__name__) or _in_pillow(op.aug_fn)

    def apply(image: Pixels, rng: np.random.Generator) -> Pixels:
        chosen = rng.choice(len(transform.ops), transform.num_layers, replace=weights is None, p=weights)
        with _seeded_random(int(rng.integers(2**32))):  # timm draws levels and signs from the global generator
            for number in chosen:
                image = transform.ops[number](image)
        return image

    return apply


@contextlib.contextmanager
def _seeded_random(seed: int) -> Iterator[None]:
    """Python's global generator, seeded inside the block and as before after it."""
    state = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)


def _in_pillow(operation: Callable[..., Image.Image]) -> Callable[..., Pixels]:
    return lambda image, *args, **options: np.asarray(operation(Image.fromarray(image), *args, **options))


# Geometry -----------------------------------------------------------------------------------------------------------


def _affine(image: Pixels, matrix: list[float], resample: Any, fillcolor: tuple[int, ...]) -> Pixels:
    """Output pixel (x, y) is input pixel (a x + b y + c, d x + e y + f), both measured at pixel centres."""
    a, b, c, d, e, f = matrix
    centred = np.array([[a, b, c + (a + b - 1) / 2], [d, e, f + (d + e - 1) / 2]])
    if isinstance(resample, list | tuple):
        resample = random.choice(resample)
    method = cv2.INTER_CUBIC if resample == Image.Resampling.BICUBIC else cv2.INTER_LINEAR
    extent = image.shape[1], image.shape[0]
    return cv2.warpAffine(  # type: ignore[return-value]
        image, centred, extent, flags=method | cv2.WARP_INVERSE_MAP, borderValue=fillcolor
    )


def _shear_x(image: Pixels, factor: float, **options: Any) -> Pixels:
    return _affine(image, [1, factor, 0, 0, 1, 0], **options)


def _shear_y(image: Pixels, factor: float, **options: Any) -> Pixels:
    return _affine(image, [1, 0, 0, factor, 1, 0], **options)


def _translate_x(image: Pixels, pixels: float, **options: Any) -> Pixels:
    return _affine(image, [1, 0, pixels, 0, 1, 0], **options)


def _translate_y(image: Pixels, pixels: float, **options: Any) -> Pixels:
    return _affine(image, [1, 0, 0, 0, 1, pixels], **options)


def _translate_x_rel(image: Pixels, share: float, **options: Any) -> Pixels:
    return _translate_x(image, share * image.shape[1], **options)


def _translate_y_rel(image: Pixels, share: float, **options: Any) -> Pixels:
    return _translate_y(image, share * image.shape[0], **options)


def _rotate(image: Pixels, degrees: float, **options: Any) -> Pixels:
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    x, y = image.shape[1] / 2, image.shape[0] / 2
    return _affine(image, [cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y], **options)


# Values of single pixels --------------------------------------------------------------------------------------------


def _look_up(image: Pixels, table: NDArray[Any]) -> Pixels:
    """table: (256,), or (256, 3) with one for each channel."""
    shaped = np.clip(table, 0, 255).astype(np.uint8)
    return cv2.LUT(image, shaped if table.ndim == 1 else shaped[:, None])  # type: ignore[return-value]


def _invert(image: Pixels, **_: Any) -> Pixels:
    return cv2.bitwise_not(image)  # type: ignore[return-value]


def _solarize(image: Pixels, threshold: int, **_: Any) -> Pixels:
    return _look_up(image, np.where(threshold > _VALUES, _VALUES, 255 - _VALUES))


def _solarize_add(image: Pixels, add: int, thresh: int = 128, **_: Any) -> Pixels:
    return _look_up(image, np.where(thresh > _VALUES, _VALUES + add, _VALUES))


def _posterize(image: Pixels, bits: int, **_: Any) -> Pixels:
    """timm's strongest one keeps no bit, which makes the image black."""
    return image if bits >= 8 else _look_up(image, _VALUES & (0xFF00 >> max(bits, 0)))


def _brightness(image: Pixels, factor: float, **_: Any) -> Pixels:
    return _look_up(image, _VALUES * np.float32(factor))


def _contrast(image: Pixels, factor: float, **_: Any) -> Pixels:
    mean = int(cv2.mean(_grey(image))[0] + 0.5)
    return _look_up(image, mean + np.float32(factor) * (_VALUES - mean).astype(np.float32))


# Histograms ---------------------------------------------------------------------------------------------------------


def _histograms(image: Pixels) -> NDArray[np.int64]:
    """(3, 256)."""
    return np.stack([cv2.calcHist([image], [c], None, [256], [0, 256]).ravel() for c in range(3)]).astype(np.int64)


def _auto_contrast(image: Pixels, **_: Any) -> Pixels:
    tables = []
    for counts in _histograms(image):
        used = np.flatnonzero(counts)
        low, high = int(used[0]), int(used[-1])
        scale = 255 / max(1, high - low)
        tables.append(np.trunc(_VALUES * scale - low * scale) if high > low else _VALUES)
    return _look_up(image, np.stack(tables, axis=1))


def _equalize(image: Pixels, **_: Any) -> Pixels:
    tables = []
    for counts in _histograms(image):
        used = counts[counts > 0]
        step = int(used[:-1].sum()) // 255  # 0 for a channel of one value, which stays as it is
        tables.append((step // 2 + np.cumsum(counts) - counts) // step if step else _VALUES)
    return _look_up(image, np.stack(tables, axis=1))


# Blends -------------------------------------------------------------------------------------------------------------


def _grey(image: Pixels) -> Pixels:
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)  # type: ignore[return-value]


def _color(image: Pixels, factor: float, **_: Any) -> Pixels:
    grey = cv2.cvtColor(_grey(image), cv2.COLOR_GRAY2RGB)
    return cv2.addWeighted(image, factor, grey, 1 - factor, 0)  # type: ignore[return-value]


_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13


def _sharpness(image: Pixels, factor: float, **_: Any) -> Pixels:
    smooth = cv2.filter2D(image, -1, _SMOOTH)
    for edge in (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1]):  # which Pillow leaves as they are
        smooth[edge] = image[edge]
    return cv2.addWeighted(image, factor, smooth, 1 - factor, 0)  # type: ignore[return-value]


OPERATIONS: dict[str, Callable[..., Pixels]] = {
    "shear_x": _shear_x,
    "shear_y": _shear_y,
    "translate_x_abs": _translate_x,
    "translate_y_abs": _translate_y,
    "translate_x_rel": _translate_x_rel,
    "translate_y_rel": _translate_y_rel,
    "rotate": _rotate,
    "invert": _invert,
    "solarize": _solarize,
    "solarize_add": _solarize_add,
    "posterize": _posterize,
    "brightness": _brightness,
    "contrast": _contrast,
    "auto_contrast": _auto_contrast,
    "equalize": _equalize,
    "color": _color,
    "sharpness": _sharpness,
}
"""By the names of timm's functions."""
