"""How an image looks, changed at random: noise, blur, brightness, contrast, resolution, gamma, colour. Masks stay.

Steps and their order are those of nnU-Net (Isensee et al., Nature Methods 2021; `nnUNetTrainer`), then colour. Pixels
are float32 (C, H, W) of the range 0..1 and stay within it. The channels of a photograph are changed alike; those of
other images each by itself, as nnU-Net does.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from rwkvctl.config.specs.augment import COLOUR, SegmentationAugment

MOST_CHANNELS = 64
"""That OpenCV is given at once: slices of a volume."""

Step = Callable[[torch.Tensor, SegmentationAugment, np.random.Generator], torch.Tensor]


def change_appearance(image: torch.Tensor, augment: SegmentationAugment, rng: np.random.Generator) -> torch.Tensor:
    """(C, H, W) uint8 or float32, each step with the probability of its name. Of what is no photograph, colour is left
    out.

    A step that is switched off draws no random number, so that one more leaves the pixels of all others as they were.
    """
    pixels, is_photo = image, image.dtype == torch.uint8
    for name, step in STEPS.items():
        probability = getattr(augment, name)
        if not probability or (name in COLOUR and not is_photo) or rng.random() >= probability:
            continue
        values = functional.to_dtype(pixels, torch.float32, scale=True)
        parts = [values] if is_photo else values.split(1)
        pixels = torch.cat([step(part, augment, rng) for part in parts]).clamp(0, 1)
    if pixels.dtype == image.dtype:
        return pixels
    return pixels.mul_(255).round_().to(image.dtype)


def change_volume(image: torch.Tensor, augment: SegmentationAugment, rng: np.random.Generator) -> torch.Tensor:
    """The same of a volume, float32 (C, D, H, W): every channel by itself, its slices alike. Blur and resolution are
    those of the slices."""
    depth, height, width = image.shape[1:]
    for name, step in STEPS.items():
        probability = getattr(augment, name)
        if not probability or name in COLOUR or rng.random() >= probability:
            continue
        shape = (depth, height, width) if name in WITHIN_SLICES else (1, depth * height, width)
        image = torch.stack([step(x.reshape(shape), augment, rng).reshape(x.shape) for x in image]).clamp(0, 1)
    return image


def noise(pixels: torch.Tensor, augment: SegmentationAugment, rng: np.random.Generator) -> torch.Tensor:
    """nnU-Net's images have a deviation of 1; what it calls the variance of the noise it uses as the deviation."""
    deviation = rng.uniform(*augment.noise_deviation) * float(pixels.std())
    return pixels + deviation * torch.from_numpy(rng.standard_normal(tuple(pixels.shape), np.float32))


def blur(pixels: torch.Tensor, augment: SegmentationAugment, rng: np.random.Generator) -> torch.Tensor:
    """By OpenCV, along rows and columns apart: torchvision's takes six times as long."""
    sigma = rng.uniform(*augment.blur_sigma)
    if not sigma:
        return pixels
    parts = []
    for some in pixels.split(MOST_CHANNELS):
        rows = some.permute(1, 2, 0).contiguous().numpy()
        blurred = cv2.GaussianBlur(rows, (0, 0), sigma, borderType=cv2.BORDER_REFLECT_101)
        parts.append(torch.from_numpy(blurred.reshape(rows.shape)).permute(2, 0, 1))
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def brightness(pixels: torch.Tensor, augment: SegmentationAugment, rng: np.random.Generator) -> torch.Tensor:
    return functional.adjust_brightness(pixels, around_one(augment.brightness_factor, rng))


def contrast(pixels: torch.Tensor, augment: SegmentationAugment, rng: np.random.Generator) -> torch.Tensor:
    return functional.adjust_contrast(pixels, around_one(augment.contrast_factor, rng))


def low_resolution(pixels: torch.Tensor, augment: SegmentationAugment, rng: np.random.Generator) -> torch.Tensor:
    """Down by the nearest pixel, up bilinearly, as nnU-Net does."""
    zoom, size = rng.uniform(*augment.zoom), list(pixels.shape[1:])
    small = functional.resize(pixels, [max(1, round(side * zoom)) for side in size], InterpolationMode.NEAREST_EXACT)
    return functional.resize(small, size, InterpolationMode.BILINEAR, antialias=False)


def gamma_inverted(pixels: torch.Tensor, augment: SegmentationAugment, rng: np.random.Generator) -> torch.Tensor:
    return 1 - gamma(1 - pixels, augment, rng)


def gamma(pixels: torch.Tensor, augment: SegmentationAugment, rng: np.random.Generator) -> torch.Tensor:
    """Within the image's own range, which a power maps onto itself; then its mean and deviation are given back."""
    low, high = torch.aminmax(pixels)
    if high - low < 1e-6:
        return pixels
    bent = ((pixels - low) / (high - low)) ** around_one(augment.exponent, rng)
    return (bent - bent.mean()) * (pixels.std() / bent.std().clamp(min=1e-6)) + pixels.mean()


def saturation(pixels: torch.Tensor, augment: SegmentationAugment, rng: np.random.Generator) -> torch.Tensor:
    return functional.adjust_saturation(pixels, rng.uniform(*augment.saturation_factor))


def hue(pixels: torch.Tensor, augment: SegmentationAugment, rng: np.random.Generator) -> torch.Tensor:
    return functional.adjust_hue(pixels, rng.uniform(-augment.hue_shift, augment.hue_shift))


def around_one(ends: tuple[float, float], rng: np.random.Generator) -> float:
    """A factor from a range: as often below 1 as above where the range has both, as nnU-Net draws it."""
    low, high = ends
    if not low < 1 < high:
        return float(rng.uniform(low, high))
    return float(rng.uniform(low, 1) if rng.random() < 0.5 else rng.uniform(1, high))


STEPS: dict[str, Step] = {
    "noise": noise,
    "blur": blur,
    "brightness_only": brightness,
    "contrast_only": contrast,
    "low_resolution": low_resolution,
    "gamma_inverted": gamma_inverted,
    "gamma": gamma,
    "saturation": saturation,
    "hue": hue,
}
"""By the field that holds its probability."""
WITHIN_SLICES = ("blur", "low_resolution")
"""Steps that look at a pixel's neighbours."""
