"""From a spec to a network; UserError for a spec that no network fits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import timm
import torch
from torch import nn

from rwkv_unet import baselines, create_model, deep_supervision
from rwkv_unet.flops import Macs, dry_run
from rwkvctl.base.errors import UserError
from rwkvctl.config.specs.jobs import FinetuneSpec
from rwkvctl.config.specs.load import build, parse_assignments
from rwkvctl.config.specs.parts import EncoderSpec, ModelSpec
from rwkvctl.data.feed.model_input import format_of


def outputs(classes: list[str]) -> int:
    """Channels of the logits: one for a single foreground class, as in the paper's binary sets, else one a class."""
    return 1 if len(classes) == 2 else len(classes)


def parse(text: str) -> ModelSpec:
    """`NAME` or `NAME,field=value,...` as the command line names a model that is not trained."""
    name, *assignments = text.split(",")
    return build(ModelSpec, {"name": name, **parse_assignments(assignments)}, f"model {text}")


def inputs(channels: int) -> dict[str, int]:
    """What `create_model` is told of images of so many channels: networks take 3 by themselves, and repeat 1."""
    return {} if channels in (1, 3) else {"in_channels": channels}


def segmentation_network(spec: ModelSpec, classes: list[str], channels: int = 3) -> nn.Module:
    """A segmentation network with random weights; (B, channels, H, W) -> logits (B, `outputs(classes)`, H, W), or over
    three axes (B, channels, D, H, W)."""
    return network(spec, outputs(classes), channels)


def network(spec: ModelSpec, num_classes: int, channels: int = 3) -> nn.Module:
    """The same by the number of output channels."""
    arguments = described(spec, num_classes, channels)
    return _build(create_model, arguments.pop("name"), **arguments)


def described(spec: ModelSpec, num_classes: int, channels: int) -> dict[str, Any]:
    """What `create_model` is given, and a model folder keeps."""
    seen = {"in_channels": channels} if spec.takes_volumes else inputs(channels)
    return {"name": spec.name, "num_classes": num_classes, **seen, **spec.overrides()}


def channels_last(model: nn.Module) -> nn.Module:
    """The model, in place, with the channels of its convolutions last in memory, as `to_input` has those of images.
    Over three axes, on a CPU, passes then take two thirds of the time, and some a tenth."""
    for tensor in chain(model.parameters(), model.buffers()):
        if tensor.ndim in (4, 5):
            tensor.data = tensor.data.contiguous(memory_format=format_of(tensor))
    return model


def input_shape(spec: FinetuneSpec, channels: int) -> tuple[int, ...]:
    """(C, H, W) of what a run's network is trained on, or (C, D, H, W), which has been planned."""
    if spec.volumes is None:
        return channels, spec.data.image_size, spec.data.image_size
    assert spec.volumes.patch != "auto", "planned before"
    return channels, *spec.volumes.patch


def trained(spec: FinetuneSpec) -> ModelSpec:
    """The network that a run trains: its model, with the heads of deep supervision if the run has it."""
    model = spec.model
    supervised = [name for name in baselines.BASELINES if baselines.has_deep_supervision(name)]
    if model.name in supervised and "deep_supervision" in model.options:
        raise UserError("model.options.deep_supervision: leave it out, and set deep_supervision to sum or mutation")
    if spec.deep_supervision == "none":
        return model
    if spec.deep_supervision == "scales":
        if deep_supervision(model.name) != "scales":
            raise UserError(
                f"deep_supervision: {model.name} has logits at one scale only; set it to none, or model.name to one of "
                "rwkv_unet_3d or to monai:DynUNet"
            )
        return model.model_copy(update={"options": model.options | {"deep_supervision": True}})
    if model.name not in supervised:
        raise UserError(
            f"deep_supervision: {model.name} has logits at one scale only; set it to none, "
            f"or model.name to {' or '.join(supervised)}"
        )
    return model.model_copy(update={"options": model.options | {"deep_supervision": True}})


def timm_encoder(spec: ModelSpec) -> str | None:
    """The timm model that is the network's encoder, if one is."""
    return spec.encoder or baselines.timm_encoder(spec.name)


def classifier(spec: EncoderSpec, classes: list[str]) -> nn.Module:
    """A timm classifier with random weights; logits (B, len(classes))."""
    return _build(timm.create_model, spec.name, num_classes=len(classes), **spec.overrides())


def check(spec: ModelSpec | EncoderSpec, classes: list[str], image: tuple[int, ...]) -> None:
    """Build the network and run it, both without memory, to know before a job is launched whether it works.

    `image` is (C, H, W) of what it will be given, or (C, D, H, W).
    """
    with torch.device("meta"):
        if isinstance(spec, ModelSpec):
            model = segmentation_network(spec, classes, image[0])
        else:
            model = classifier(spec, classes)
    macs(model, spec.name, image)


def macs(model: nn.Module, name: str, image: tuple[int, ...]) -> Macs:
    """Multiply-accumulates for an image (C, H, W) or a patch (C, D, H, W); UserError where the network does not take
    such a one, or its logits are not of its size."""
    field = f"data.image_size {image[1]}" if len(image) == 3 else f"volumes.patch {list(image[1:])}"
    try:
        macs, output = dry_run(model, image)
    except (ValueError, RuntimeError, AssertionError, IndexError, TypeError) as error:
        raise UserError(f"{field}: model {name}: {_line(error)}") from None
    if output.ndim == len(image) + 1 and tuple(output.shape[2:]) != image[1:]:
        raise UserError(
            f"model {name}: its logits are {sides(output.shape[2:])} for images of {sides(image[1:])}, and must be of "
            "the same size; see model.options (smp's are upsampling and encoder_depth)"
        )
    return macs


def sides(shape: Sequence[int]) -> str:
    """`224 x 224`"""
    return " x ".join(map(str, shape))


def _build(create: Callable[..., nn.Module], name: str, **arguments: Any) -> nn.Module:
    try:
        return create(name, **arguments)
    except (ValueError, RuntimeError, TypeError, IndexError) as error:
        raise UserError(f"model.name {name}: {_line(error)}") from None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
