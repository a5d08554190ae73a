"""Models by name: every kind of model adds a line to the tables here and knows nothing of the others."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from rwkv_unet.baselines import BASELINES, create_baseline, libraries
from rwkv_unet.config import MODELS as RWKV_UNETS
from rwkv_unet.config import VOLUMETRIC_MODELS, suggest
from rwkv_unet.model import create_rwkv_unet
from rwkv_unet.volumetric import create_rwkv_unet_3d

Create = Callable[..., nn.Module]
"""`(*, num_classes, in_channels, **overrides) -> model`; a ValueError names a field that the model does not have."""

MODELS: dict[str, Create] = {
    **{name: partial(create_rwkv_unet, name) for name in RWKV_UNETS},
    **{name: partial(create_rwkv_unet_3d, name) for name in VOLUMETRIC_MODELS},
    **{name: partial(create_baseline, name) for name in BASELINES},
}
FAMILIES: dict[str, Create] = {"smp": libraries.smp_network, "monai": libraries.monai_network}
"""Models of other libraries, "family:member": the member is the first argument."""


def list_models(*, examples: bool = False) -> list[str]:
    """Names that `create_model` takes, without the members of families, or with a few of them as examples."""
    return [*MODELS, *(libraries.EXAMPLES if examples else ())]


def create_model(name: str, *, num_classes: int, in_channels: int = 3, **overrides: Any) -> nn.Module:
    """A segmentation model with random weights: (B, in_channels, H, W) -> logits (B, num_classes, H, W).

    "rwkv_unet_3d_t" has a depth axis, (B, in_channels, D, H, W).

    Args:
        name: one of `list_models()`, "smp:ARCH-ENCODER" or "monai:CLASS" (see `rwkv_unet.baselines.libraries`).
        num_classes: output channels, the background included.
        in_channels: input channels.
        overrides: for an RWKV-UNet any other field of `ModelConfig`, for the others the arguments of their class.

    Raises:
        ValueError: for an unknown name or field (with near matches), a bad value, or a library that is missing.
    """
    return _find(name)(num_classes=num_classes, in_channels=in_channels, **overrides)


def _find(name: str) -> Create:
    family, _, member = name.partition(":")
    if member and family in FAMILIES:
        return partial(FAMILIES[family], member)
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}; {suggest(name, [*MODELS, *(f'{x}:...' for x in FAMILIES)])}")
    return MODELS[name]
