"""From a stored sample to model-sized pixels: resize, crop, augment.

Every random choice comes from the generator that is passed in (one a sample, see `order.sample_generator`), never
from a global one. Pixels stay uint8 (rgb8) or float32 (float); normalisation happens on the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from rwkvctl.config.specs.augment import ClassificationAugment, SegmentationAugment
from rwkvctl.data.feed.appearance import change_appearance
from rwkvctl.data.feed.rand_augment import rand_augment
from rwkvctl.data.images import colour
from rwkvctl.data.images import files as image_files
from rwkvctl.data.store.reader import Photo

Pixels = NDArray[np.uint8] | NDArray[np.float32]
Size = tuple[int, int]

COARSE = 4.0
"""Deviation of a deformation's Gaussian in points of its noise, unless a point is a pixel."""

EVAL_CROP = 0.875
"""The centre crop's share of the shorter side in classification."""

Pair = tuple[torch.Tensor, torch.Tensor]
SegmentationTransform = Callable[[Pixels, NDArray[np.uint8], np.random.Generator], Pair]
ClassificationTransform = Callable[[Photo, np.random.Generator], torch.Tensor]


# Sizes --------------------------------------------------------------------------------------------------------------


def resize_image(image: Pixels, size: Size) -> Pixels:
    """(H, W[, C]) to (*size[, C]), see `images.files.resize`."""
    resized: Pixels = image_files.resize(image, size)
    return resized


def resize_mask(mask: NDArray[np.uint8], size: Size) -> NDArray[np.uint8]:
    """(H, W) ids to (*size): the nearest pixel centre, so that it stays in register with `resize_image`."""
    return mask if mask.shape == size else image_files.resize_nearest(mask, *size)


def to_tensor(image: Pixels) -> torch.Tensor:
    """(H, W, C) or (H, W) to (C, H, W), a view: channels stay last in memory, as models compute fastest."""
    planes = image[..., None] if image.ndim == 2 else image
    return torch.from_numpy(np.ascontiguousarray(planes)).permute(2, 0, 1)


def channels_last(image: torch.Tensor) -> torch.Tensor:
    """(C, H, W) whose channels lie last in memory."""
    return image.permute(1, 2, 0).contiguous().permute(2, 0, 1)


# Segmentation -------------------------------------------------------------------------------------------------------


def segmentation_train(size: Size, augment: SegmentationAugment | None) -> SegmentationTransform:
    """The training transform of an image and its mask: resize, brightness and contrast (image), geometry (both), then
    the image's appearance."""

    def transform(image: Pixels, mask: NDArray[np.uint8], rng: np.random.Generator) -> Pair:
        image, mask = resize_image(image, size), resize_mask(mask, size)
        if augment is None:
            return to_tensor(image), torch.from_numpy(np.ascontiguousarray(mask))
        image, low, span = to_unit(image)
        image = brightness_contrast(image, augment, rng)
        pair = tv_tensors.Image(to_tensor(image)), tv_tensors.Mask(torch.from_numpy(np.ascontiguousarray(mask)))
        moved, ids = _move(pair, augment, rng)
        changed = change_appearance(moved.as_subclass(torch.Tensor), augment, rng)
        if span is not None:
            changed = changed * span + low
        return channels_last(changed), ids.as_subclass(torch.Tensor).contiguous()

    return transform


def to_unit(image: Pixels) -> tuple[Pixels, torch.Tensor | float, torch.Tensor | None]:
    """A float image (H, W[, C]) in [0, 1], which is where augmentation changes it, and the way back: what to add, and
    what to multiply with before, None for what lies there already.

    Channels in deviations from a mean go by their own range in this image, each by itself.
    """
    if image.dtype == np.uint8 or (image.min() >= 0 and image.max() <= 1):
        return image, 0.0, None
    low = image.min(axis=(0, 1))
    span = np.maximum(image.max(axis=(0, 1)) - low, np.float32(1e-6))
    ends = (torch.from_numpy(np.atleast_1d(each).astype(np.float32))[:, None, None] for each in (low, span))
    return ((image - low) / span).astype(np.float32), *ends


def brightness_contrast(image: Pixels, augment: SegmentationAugment, rng: np.random.Generator) -> Pixels:
    """Both changed at random, or with the rest of the probability neither."""
    if rng.random() >= augment.brightness_contrast:
        return image
    if image.dtype != np.uint8 and image.ndim == 3:  # channels that are no colours of one picture
        always = augment.model_copy(update={"brightness_contrast": 1.0})
        planes = [brightness_contrast(plane, always, rng) for plane in np.moveaxis(image, -1, 0)]
        return np.stack(planes, axis=-1).astype(np.float32, copy=False)
    pixels = colour.to_float(image) if image.dtype == np.uint8 else image.astype(np.float32)
    pixels = colour.brightness(pixels, rng.uniform(1 - augment.brightness, 1 + augment.brightness))
    pixels = colour.contrast(pixels, rng.uniform(1 - augment.contrast, 1 + augment.contrast))
    return colour.to_uint8(pixels) if image.dtype == np.uint8 else pixels


def _move(pair: Pair, augment: SegmentationAugment, rng: np.random.Generator) -> Pair:
    """Flips, quarter turns, affine maps and a deformation, the same for both; torchvision takes nearest for the mask by
    itself. What comes in from outside is 0, the background."""
    if rng.random() < augment.horizontal_flip:
        pair = _both(functional.horizontal_flip, pair)
    if rng.random() < augment.vertical_flip:
        pair = _both(functional.vertical_flip, pair)
    square = pair[1].shape[-1] == pair[1].shape[-2]
    if rng.random() < augment.rotate90 and square:
        quarters = int(rng.integers(1, 4))
        pair = _both(lambda x: tv_tensors.wrap(torch.rot90(x, quarters, (-2, -1)), like=x), pair)
    found = drawn_affine(augment, rng)
    if found is not None:
        angle, scale = found
        pair = _both(
            lambda x: functional.affine(
                x, angle, translate=[0, 0], scale=scale, shear=[0, 0], interpolation=InterpolationMode.BILINEAR
            ),
            pair,
        )
    if augment.elastic and rng.random() < augment.elastic:
        height, width = pair[1].shape[-2:]
        shifts = smooth_shifts((height, width), augment, rng)
        pair = _both(lambda x: functional.elastic(x, shifts, InterpolationMode.BILINEAR), pair)
    return pair


def drawn_affine(augment: SegmentationAugment, rng: np.random.Generator) -> tuple[float, float] | None:
    """Angle in degrees and factor of an affine map; None for none."""
    both = rng.random() < augment.affine
    angle, scale = (_angle(augment, rng), float(rng.uniform(*augment.scale))) if both else (0.0, 1.0)
    if augment.rotation and rng.random() < augment.rotation:
        angle += _angle(augment, rng)
    if augment.scaling and rng.random() < augment.scaling:
        scale *= float(rng.uniform(*augment.scale))
    return (angle, scale) if both or (angle, scale) != (0.0, 1.0) else None


def _angle(augment: SegmentationAugment, rng: np.random.Generator) -> float:
    return float(rng.uniform(-augment.degrees, augment.degrees))


def smooth_shifts(size: Size, augment: SegmentationAugment, rng: np.random.Generator) -> torch.Tensor:
    """(1, H, W, 2) shifts in x and y for `functional.elastic`, which counts from -1 to 1 over a side: noise made smooth
    by a Gaussian, and scaled so that the farthest shift is as long as drawn. The noise is coarse where the Gaussian is
    wide, which takes a tenth of the time and looks the same."""
    sigma = augment.elastic_smoothness * min(size)
    share = min(1.0, COARSE / sigma)
    noise = rng.standard_normal((*(math.ceil(side * share) for side in size), 2), np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), sigma * share, borderType=cv2.BORDER_REFLECT)
    smooth = cv2.resize(smooth, size[::-1], interpolation=cv2.INTER_CUBIC)
    farthest = float(np.hypot(smooth[..., 0], smooth[..., 1]).max())
    pixels = smooth * (rng.uniform(*augment.elastic_shift) * min(size) / farthest)
    return torch.from_numpy((pixels * np.array([2 / size[1], 2 / size[0]])).astype(np.float32))[None]


def _both(step: Callable[[torch.Tensor], torch.Tensor], pair: Pair) -> Pair:
    return step(pair[0]), step(pair[1])


# Classification -----------------------------------------------------------------------------------------------------


def classification_train(size: Size, augment: ClassificationAugment | None) -> ClassificationTransform:
    """Random resized crop and flip by OpenCV, then RandAugment or colour jitter: the order of timm.

    Without `augment` (null in the spec), the evaluation transform.
    """
    if augment is None:
        return classification_eval(size)
    distort = rand_augment(augment.rand_augment, size, augment.interpolation) if augment.rand_augment else None

    def transform(photo: Photo, rng: np.random.Generator) -> torch.Tensor:
        image = _random_resized_crop(photo, size, augment, rng)
        if rng.random() < augment.horizontal_flip:
            image = cv2.flip(image, 1)  # type: ignore[assignment]
        if distort:
            image = distort(image, rng)
        elif augment.color_jitter:
            image = colour.jitter(image, augment.color_jitter, rng)
        return to_tensor(image)

    return transform


def _random_resized_crop(
    photo: Photo, size: Size, augment: ClassificationAugment, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Drawn in the pixels of the whole photo, cut out of one that is decoded no larger than the crop needs."""
    whole = photo.size
    top, left, height, width = _crop_box(*whole, augment, rng)
    image = photo.pixels(least=(-(-size[0] * whole[0] // height), -(-size[1] * whole[1] // width)))
    if image.shape[:2] != whole:
        (top, height), (left, width) = (
            _scaled(start, length, image.shape[axis] / whole[axis])
            for axis, (start, length) in enumerate(((top, height), (left, width)))
        )
    bicubic = augment.interpolation == "bicubic" or (augment.interpolation == "random" and rng.random() < 0.5)
    method = cv2.INTER_CUBIC if bicubic else cv2.INTER_LINEAR
    if height >= 2 * size[0] and width >= 2 * size[1]:
        method = cv2.INTER_AREA  # the others look at 2 or 4 pixels only and would alias
    crop = image[top : top + height, left : left + width]
    return cv2.resize(crop, (size[1], size[0]), interpolation=method)  # type: ignore[return-value]


def _scaled(start: int, length: int, factor: float) -> tuple[int, int]:
    """A stretch of pixels in an image that is `factor` as large."""
    first = round(start * factor)
    return first, max(1, round((start + length) * factor) - first)


def _crop_box(
    height: int, width: int, augment: ClassificationAugment, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """(top, left, height, width), drawn as torchvision's RandomResizedCrop does."""
    low, high = map(math.log, augment.crop_ratio)
    for _ in range(10):
        area = height * width * rng.uniform(*augment.crop_scale)
        ratio = math.exp(rng.uniform(low, high))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1)), h, w
    ratio = min(max(width / height, augment.crop_ratio[0]), augment.crop_ratio[1])
    h, w = min(height, round(width / ratio)), min(width, round(height * ratio))
    return (height - h) // 2, (width - w) // 2, h, w


def classification_eval(size: Size) -> ClassificationTransform:
    """Shorter side to round(size / 0.875), bicubic with antialiasing, then the centre: the ImageNet convention."""

    def transform(photo: Photo, rng: np.random.Generator | None = None) -> torch.Tensor:
        return eval_pixels(photo.pixels(), size)

    return transform


def eval_pixels(image: NDArray[np.uint8], size: Size) -> torch.Tensor:
    """As `classification_eval`, of the pixels (H, W, 3)."""
    height, width = size
    scale = max(round(height / EVAL_CROP) / image.shape[0], round(width / EVAL_CROP) / image.shape[1])
    large = max(height, round(image.shape[0] * scale)), max(width, round(image.shape[1] * scale))
    resized = np.asarray(Image.fromarray(image).resize((large[1], large[0]), Image.Resampling.BICUBIC))
    top, left = (large[0] - height) // 2, (large[1] - width) // 2
    return to_tensor(resized[top : top + height, left : left + width])
