"""What may happen to a training sample before the model sees it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from rwkvctl.config.specs.base import Spec

Probability = Annotated[float, Field(ge=0, le=1)]


class ClassificationAugment(Spec):
    """ImageNet augmentation; the defaults are those of the paper's pretraining."""

    crop_scale: tuple[float, float] = (0.08, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    horizontal_flip: Probability = 0.5
    color_jitter: Annotated[float, Field(ge=0)] = 0.4
    rand_augment: str | None = "rand-m9-mstd0.5-inc1"
    """timm's RandAugment string, or null for none. When set, it takes the place of the colour jitter, as in timm."""
    interpolation: Literal["random", "bilinear", "bicubic"] = "random"


class SegmentationAugment(Spec):
    """Augmentation of an image and its mask together; geometric steps are shared, colour steps touch the image only."""

    horizontal_flip: Probability = 0.5
    vertical_flip: Probability = 0.5
    rotate90: Probability = 0.5
    """A random multiple of 90 degrees (square outputs only)."""
    affine: Probability = 0.3
    """A random rotation within +-`degrees` and scaling within `scale`, with this probability."""
    degrees: Annotated[float, Field(ge=0, le=180)] = 30.0
    scale: tuple[float, float] = (0.8, 1.2)
    brightness_contrast: Probability = 0.3
    brightness: Annotated[float, Field(ge=0, le=1)] = 0.2
    contrast: Annotated[float, Field(ge=0, le=1)] = 0.2
