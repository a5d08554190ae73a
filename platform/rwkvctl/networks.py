"""From a spec to a network; what a spec asks for in vain is a UserError."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import timm
import torch
from torch import nn

from rwkv_unet import create_model
from rwkvctl.errors import UserError
from rwkvctl.specs.load import build, parse_assignments
from rwkvctl.specs.parts import EncoderSpec, ModelSpec


def outputs(classes: list[str]) -> int:
    """Channels of the logits: one for a single foreground class, as in the paper's binary sets, else one a class."""
    return 1 if len(classes) == 2 else len(classes)


def parse(text: str) -> ModelSpec:
    """`NAME` or `NAME,field=value,...` as the command line names a model that is not trained."""
    name, *assignments = text.split(",")
    return build(ModelSpec, {"name": name, **parse_assignments(assignments)}, f"model {text}")


def segmentation_network(spec: ModelSpec, classes: list[str]) -> nn.Module:
    """A segmentation network with random weights; logits (B, `outputs(classes)`, H, W)."""
    return network(spec, outputs(classes))


def network(spec: ModelSpec, num_classes: int) -> nn.Module:
    """The same by the number of output channels."""
    return _build(create_model, spec.name, num_classes=num_classes, **spec.overrides())


def classifier(spec: EncoderSpec, classes: list[str]) -> nn.Module:
    """A timm classifier with random weights; logits (B, len(classes))."""
    return _build(timm.create_model, spec.name, num_classes=len(classes), **spec.overrides())


def check(spec: ModelSpec | EncoderSpec, classes: list[str]) -> None:
    """Build the network without memory, to know before a job is launched whether it can be built."""
    with torch.device("meta"):
        segmentation_network(spec, classes) if isinstance(spec, ModelSpec) else classifier(spec, classes)


def _build(create: Callable[..., nn.Module], name: str, **arguments: Any) -> nn.Module:
    try:
        return create(name, **arguments)
    except (ValueError, RuntimeError, TypeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"model.name {name}: {reason}") from None
