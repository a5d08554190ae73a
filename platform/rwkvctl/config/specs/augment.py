"""What may happen to a training sample before the model sees it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from rwkvctl.config.specs.base import Spec

Probability = Annotated[float, Field(ge=0, le=1)]


def ascending(ends: tuple[float, float]) -> tuple[float, float]:
    """Refuse a range whose ends are exchanged."""
    if ends[0] > ends[1]:
        raise ValueError("must be [low, high], low first")
    return ends


Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Factor = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Amounts = Annotated[tuple[Amount, Amount], AfterValidator(ascending)]
Factors = Annotated[tuple[Factor, Factor], AfterValidator(ascending)]
Zoom = Annotated[float, Field(gt=0, le=1)]
Zooms = Annotated[tuple[Zoom, Zoom], AfterValidator(ascending)]
Shares = Annotated[tuple[Probability, Probability], AfterValidator(ascending)]


class ClassificationAugment(Spec):
    """ImageNet augmentation; the defaults are those of the paper's pretraining."""

    crop_scale: Zooms = (0.08, 1.0)
    """Area of the crop over that of the photo."""
    crop_ratio: Factors = (3 / 4, 4 / 3)
    """Its width over its height."""
    horizontal_flip: Probability = 0.5
    color_jitter: Amount = 0.4
    rand_augment: str | None = "rand-m9-mstd0.5-inc1"
    """timm's RandAugment string, or null for none. When set, it takes the place of the colour jitter, as in timm."""
    interpolation: Literal["random", "bilinear", "bicubic"] = "random"


PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "nnunet": {
        "rotate90": 0.0, "affine": 0.0, "brightness_contrast": 0.0,
        "rotation": 0.2, "degrees": 180.0, "scaling": 0.2, "scale": (0.7, 1.4),
        "noise": 0.1, "blur": 0.2, "brightness_only": 0.15, "contrast_only": 0.15, "low_resolution": 0.25,
        "gamma_inverted": 0.1, "gamma": 0.3,
    },
    "photo": {
        "elastic": 0.2, "noise": 0.1, "blur": 0.2, "low_resolution": 0.1, "gamma": 0.2,
        "saturation": 0.3, "hue": 0.3,
    },
}  # fmt: skip
"""The fields of each preset that differ from the paper's."""

COLOUR = ("saturation", "hue")
"""Steps that need an image in colour."""


class SegmentationAugment(Spec):
    """Augmentation of an image and its mask together; geometric steps are shared, the others touch the image only.

    Fields that are not given have the values of the preset.
    """

    preset: Literal["paper", "nnunet", "photo"] = "paper"
    """paper: as the authors train. nnunet: the recipe of nnU-Net. photo: the paper's with elastic deformation, noise,
    blur and colour, for photographs."""
    horizontal_flip: Probability = 0.5
    """Left and right exchanged."""
    vertical_flip: Probability = 0.5
    """Top and bottom exchanged."""
    rotate90: Probability = 0.5
    """A random multiple of 90 degrees (square outputs only)."""
    affine: Probability = 0.3
    """A random rotation within +-`degrees` and scaling within `scale`, with this probability."""
    rotation: Probability = 0.0
    """A random rotation within +-`degrees` by itself."""
    degrees: Annotated[float, Field(ge=0, le=180)] = 30.0
    """Largest angle of a rotation."""
    scaling: Probability = 0.0
    """A random scaling within `scale` by itself."""
    scale: Factors = (0.8, 1.2)
    """Factors of a scaling; above 1 objects get larger."""
    elastic: Probability = 0.0
    """A smooth random deformation."""
    elastic_shift: Shares = (0.01, 0.04)
    """How far it moves what it moves most, as a share of the shorter side."""
    elastic_smoothness: Annotated[float, Field(gt=0, le=1)] = 0.06
    """Deviation of the Gaussian that makes it smooth, as a share of the shorter side."""
    brightness_contrast: Probability = 0.3
    """Brightness and contrast, both times a factor around 1."""
    brightness: Annotated[float, Field(ge=0, le=1)] = 0.2
    """How far that of the brightness may be from 1."""
    contrast: Annotated[float, Field(ge=0, le=1)] = 0.2
    """How far that of the contrast may be from 1."""
    noise: Probability = 0.0
    """Gaussian noise."""
    noise_deviation: Amounts = (0.0, 0.1)
    """Of the noise, in units of the image's own."""
    blur: Probability = 0.0
    """A Gaussian blur."""
    blur_sigma: Amounts = (0.5, 1.0)
    """In pixels of the image that the model sees."""
    brightness_only: Probability = 0.0
    """Brightness by itself."""
    brightness_factor: Factors = (0.75, 1.25)
    """What it is multiplied by."""
    contrast_only: Probability = 0.0
    """Contrast by itself."""
    contrast_factor: Factors = (0.75, 1.25)
    """What it is multiplied by."""
    low_resolution: Probability = 0.0
    """Sampled down and up again."""
    zoom: Zooms = (0.5, 1.0)
    """The smaller size over the larger."""
    gamma_inverted: Probability = 0.0
    """As `gamma`, of the negative."""
    gamma: Probability = 0.0
    """A power of the intensities within the image's own range; mean and deviation stay."""
    exponent: Factors = (0.7, 1.5)
    """Of that power; below 1 as often as above."""
    saturation: Probability = 0.0
    """Saturation of the colours."""
    saturation_factor: Amounts = (0.7, 1.3)
    """What it is multiplied by; 0 is grey."""
    hue: Probability = 0.0
    """Hues turned by up to +-`hue_shift`."""
    hue_shift: Annotated[float, Field(ge=0, le=0.5)] = 0.05
    """A share of the circle of hues."""

    @model_validator(mode="before")
    @classmethod
    def _from_preset(cls, fields: Any) -> Any:
        """What is given, on top of the values of its preset."""
        preset = fields.get("preset") if isinstance(fields, dict) else None
        return PRESETS[preset] | fields if isinstance(preset, str) and preset in PRESETS else fields

    def own(self) -> dict[str, Any]:
        """The fields that differ from those of the preset."""
        usual = dict(SegmentationAugment(preset=self.preset))
        return {name: value for name, value in self if value != usual[name]}
