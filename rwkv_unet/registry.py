"""Models by name: every kind of model adds a line to the tables here and knows nothing of the others."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

from torch import nn

from rwkv_unet.baselines import BASELINES, create_baseline, has_deep_supervision, libraries, monai_networks
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
FAMILIES: dict[str, Create] = {"smp": libraries.smp_network, "monai": monai_networks.monai_network}
"""Models of other libraries, "family:member": the member is the first argument."""


def list_models(*, examples: bool = False) -> list[str]:
    """Names that `create_model` takes, without the members of families, or with a few of them as examples."""
    return [*MODELS, *(libraries.EXAMPLES if examples else ())]


def create_model(name: str, *, num_classes: int, in_channels: int = 3, **overrides: Any) -> nn.Module:
    """A segmentation model with random weights: (B, in_channels, H, W) -> logits (B, num_classes, H, W).

    Networks for volumes (see `dimensions`) take (B, in_channels, D, H, W) to (B, num_classes, D, H, W), and their
    `divisor` has three numbers, of what D, H and W must be multiples of.

    Args:
        name: one of `list_models()`, "smp:ARCH-ENCODER" (see `rwkv_unet.baselines.libraries`) or "monai:CLASS"
            (see `rwkv_unet.baselines.monai_networks`).
        num_classes: output channels, the background included.
        in_channels: input channels; a network for images of 3 also takes grey ones.
        overrides: for an RWKV-UNet any other field of `ModelConfig`, for the others the arguments of their class.

    Raises:
        ValueError: for an unknown name or field (with near matches), a bad value, or a library that is missing.
    """
    return _find(name)(num_classes=num_classes, in_channels=in_channels, **overrides)


def dimensions(name: str, **overrides: Any) -> int:
    """Spatial axes of what `create_model(name, **overrides)` segments, without making it: 2 of images, 3 of volumes.

    Raises:
        ValueError: for an unknown name, or a number of axes that the model cannot have.
    """
    _find(name)
    family, _, member = name.partition(":")
    if family == "monai":
        return monai_networks.axes_of(member, overrides)
    return 3 if name in VOLUMETRIC_MODELS else 2


def deep_supervision(name: str) -> Literal["full_size", "scales"] | None:
    """What the option `deep_supervision=True` makes a model return in training mode; None if it has no such option.

    "full_size": logits of every scale, all resized to the image, the deepest first. "scales": logits of every scale but
    the coarsest, each of its own size, the finest first, as nnU-Net compares them. In evaluation mode both return the
    logits (B, num_classes, *spatial) alone.
    """
    if has_deep_supervision(name):
        return "full_size"
    return "scales" if name in VOLUMETRIC_MODELS or name == "monai:DynUNet" else None


def _find(name: str) -> Create:
    family, _, member = name.partition(":")
    if member and family in FAMILIES:
        return partial(FAMILIES[family], member)
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}; {suggest(name, [*MODELS, *(f'{x}:...' for x in FAMILIES)])}")
    return MODELS[name]
