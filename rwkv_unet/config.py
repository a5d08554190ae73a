"""What an RWKV-UNet is made of: every size of Table I and every ablation of the paper, checked."""

from __future__ import annotations

import dataclasses
import difflib
from dataclasses import dataclass
from typing import Any

from rwkv_unet.attention import ATTENTIONS
from rwkv_unet.shifts import SHIFTS
from rwkv_unet.spatial_mix import SCANS

ENCODER_FIELDS = {
    "attention": "spatial_mix",
    "shift": "q",
    "scan": "raster",
    "shallow_attention": False,
    "glsp_channel_mix": False,
}
"""Fields that change the blocks of our encoder, with their defaults."""


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and ablations of an RWKV-UNet. A bad value raises a ValueError that names the field.

    The sequences have one entry a stage (I to IV). The encoder's widths also are those of the CCM and the decoder.
    """

    num_classes: int
    stem_dim: int
    depths: tuple[int, ...]
    """Blocks a stage, the downsampling block included."""
    dims: tuple[int, ...]
    """Output channels a stage."""
    expansions: tuple[float, ...]
    """Width inside a block over the width outside; twice that in the downsampling block."""
    in_channels: int = 3
    """Channels of the input. A model of 3 channels also takes grey images, which it repeats."""
    drop_path: float = 0.05
    """Stochastic depth of the last encoder block (rising linearly from 0) and of the CCM."""
    decoder_kernel_size: int = 9
    """Depthwise kernel in the decoder, odd (Table IX)."""
    num_skips: int = 3
    """Skip connections, shallowest first; 0 also leaves out the CCM (Table XII)."""
    ccm: bool = True
    """Cross-channel mix on the skip connections (Table XII)."""
    ccm_hidden_rate: int = 2
    """Hidden width over width in the CCM's channel mix (Table XIII)."""
    attention: str = "spatial_mix"
    """Token mixer of stages III and IV (Table II)."""
    shift: str = "q"
    """What the spatial mix sees beside a token: its four neighbours (q), convolutions (omni), places that it chooses
    (deformable), or nothing."""
    scan: str = "raster"
    """Order of the tokens in the spatial mix: row by row (raster), in four directions (quad), every other row backwards
    (zigzag), or rows and then columns (separable)."""
    shallow_attention: bool = False
    """Token mixer in stages I and II too (Table X)."""
    glsp_channel_mix: bool = False
    """Channel mix after the token mixer of a block (Table XI)."""
    encoder: str | None = None
    """A timm name in place of our encoder (Table VII). The widths are then those of its maps, `depths`, `dims` and
    `expansions` are not used, and `drop_path` is that of the CCM alone."""

    def __post_init__(self) -> None:
        for name in ("depths", "dims", "expansions"):
            self._check_stages(name)
        for name in ("num_classes", "in_channels", "stem_dim", "ccm_hidden_rate"):
            self._check(name, _is_int(getattr(self, name)) and getattr(self, name) > 0, "must be a positive integer")
        self._check("drop_path", _is_number(self.drop_path) and 0 <= self.drop_path < 1, "must be in [0, 1)")
        kernel = self.decoder_kernel_size
        self._check("decoder_kernel_size", _is_int(kernel) and kernel > 0 and kernel % 2 == 1, "must be odd")
        self._check("num_skips", _is_int(self.num_skips) and 0 <= self.num_skips <= 3, "must be 0, 1, 2 or 3")
        for name in ("ccm", "shallow_attention", "glsp_channel_mix"):
            self._check(name, isinstance(getattr(self, name), bool), "must be true or false")
        self._check("attention", self.attention in ATTENTIONS, f"must be one of {', '.join(ATTENTIONS)}")
        self._check("shift", self.shift in SHIFTS, f"must be one of {', '.join(SHIFTS)}")
        self._check("scan", self.scan in SCANS, f"must be one of {', '.join(SCANS)}")
        self._check("encoder", self.encoder is None or isinstance(self.encoder, str), "must be a timm name or null")
        self._check_together()

    def _check_together(self) -> None:
        """Fields that are right each but cannot be had together."""
        for name, default in ENCODER_FIELDS.items():
            value = getattr(self, name)
            if self.encoder is not None and value != default:
                raise ValueError(
                    f"model.{name}={value!r} changes the blocks of our encoder, and model.encoder={self.encoder!r} has "
                    "none of them: leave one out"
                )
        for name, mixers in (("shift", ("spatial_mix", "spatial_mix_2d")), ("scan", ("spatial_mix",))):
            value = getattr(self, name)
            if self.attention not in mixers and value != ENCODER_FIELDS[name]:
                raise ValueError(
                    f"model.{name}={value!r} is a field of {' and '.join(mixers)}, which model.attention="
                    f"{self.attention!r} is not: leave one out"
                )
        if self.shallow_attention and self.attention == "none" and not self.glsp_channel_mix:
            raise ValueError("model.shallow_attention=True needs an attention, but model.attention='none'")

    def _check_stages(self, name: str) -> None:
        value = getattr(self, name)
        number = _is_number if name == "expansions" else _is_int
        fits = isinstance(value, tuple | list) and len(value) == 4 and all(number(x) and x > 0 for x in value)
        self._check(
            name, fits, "must be four positive numbers" if name == "expansions" else "must be four positive integers"
        )
        object.__setattr__(self, name, tuple(value))  # YAML and JSON have lists only

    def _check(self, name: str, fits: bool, rule: str) -> None:
        if not fits:
            raise ValueError(f"model.{name} {rule}, not {getattr(self, name)!r}")


# Table I, and "xt" below a million parameters
SIZES: dict[str, dict[str, Any]] = {
    "xt": {"stem_dim": 8, "depths": (2, 2, 3, 2), "dims": (12, 24, 48, 96), "expansions": (1.0, 1.5, 2.0, 3.0)},
    "t": {"stem_dim": 24, "depths": (2, 2, 4, 2), "dims": (32, 48, 96, 160), "expansions": (2.0, 2.5, 3.0, 3.5)},
    "s": {"stem_dim": 24, "depths": (3, 3, 6, 3), "dims": (32, 64, 128, 192), "expansions": (2.0, 2.5, 3.0, 4.0)},
    "b": {"stem_dim": 24, "depths": (3, 3, 6, 3), "dims": (48, 72, 144, 240), "expansions": (2.0, 2.5, 4.0, 4.0)},
}
MODELS = {f"rwkv_unet_{size}": sizes for size, sizes in SIZES.items()}
VOLUMETRIC_MODELS = {f"rwkv_unet_3d_{size}": sizes for size, sizes in SIZES.items()}

FIELDS_OF_IMAGES = ("attention", "shift", "scan", "shallow_attention", "glsp_channel_mix", "encoder")
VOLUMETRIC_OPTIONS = ("strides", "kernels", "flat_stages", "norm", "deep_supervision")
"""What networks for volumes have beside the config's fields, in place of those of images."""


def model_config(name: str, *, num_classes: int, **overrides: Any) -> ModelConfig:
    """The config of a model above with fields overridden; ValueError, with near matches, for an unknown field."""
    fields = [field.name for field in dataclasses.fields(ModelConfig)]
    apply = fields
    if name in VOLUMETRIC_MODELS:
        apply = [*VOLUMETRIC_OPTIONS, *(field for field in fields if field not in FIELDS_OF_IMAGES)]
    for key in overrides:
        if key not in fields:
            raise ValueError(f"unknown model field {key!r}; {suggest(key, apply)}")
    return ModelConfig(**{**MODELS, **VOLUMETRIC_MODELS}[name] | {"num_classes": num_classes, **overrides})


def suggest(word: str, choices: list[str]) -> str:
    """The second half of the line for an unknown name: near matches, or everything there is."""
    if near := difflib.get_close_matches(str(word), choices):
        return f"did you mean {' or '.join(near)}?"
    return f"choose from {', '.join(choices)}" if len(choices) <= 40 else f"none of {len(choices)} is near it"


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
