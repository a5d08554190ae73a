"""Models by name: every kind of model adds a line to the tables here and knows nothing of the others."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from rwkv_unet.config import MODELS as RWKV_UNETS
from rwkv_unet.config import suggest
from rwkv_unet.model import create_rwkv_unet

Create = Callable[..., nn.Module]
"""`(*, num_classes, in_channels, **overrides) -> model`; a ValueError names a field that the model does not have."""

MODELS: dict[str, Create] = {name: partial(create_rwkv_unet, name) for name in RWKV_UNETS}
FAMILIES: dict[str, Create] = {}
"""Models of other libraries, "family:member": the member is the first argument."""


def list_models() -> list[str]:
    """Names that `create_model` takes, without the members of families."""
    return list(MODELS)


def create_model(name: str, *, num_classes: int, in_channels: int = 3, **overrides: Any) -> nn.Module:
    """A segmentation model with random weights: (B, in_channels, H, W) -> logits (B, num_classes, H, W).

    Args:
        name: one of `list_models()`.
        num_classes: output channels, the background included.
        in_channels: input channels.
        overrides: for an RWKV-UNet any other field of `ModelConfig`.

    Raises:
        ValueError: for an unknown name or field (with near matches) or a bad value.
    """
    return _find(name)(num_classes=num_classes, in_channels=in_channels, **overrides)


def _find(name: str) -> Create:
    family, _, member = name.partition(":")
    if member and family in FAMILIES:
        return partial(FAMILIES[family], member)
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}; {suggest(name, [*MODELS, *(f'{x}:...' for x in FAMILIES)])}")
    return MODELS[name]
