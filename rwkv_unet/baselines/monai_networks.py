"""Networks of MONAI by name, over two axes or with `spatial_dims=3` over three; the library is optional.

    monai:CLASS    monai:DynUNet (nnU-Net's), monai:SwinUNETR, monai:BasicUNet: about as wide as the paper's U-Net

Options are handed to the class, as img_size to UNETR.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from rwkv_unet.baselines.libraries import LibraryNetwork, build, missing
from rwkv_unet.baselines.options import check_options
from rwkv_unet.config import suggest

Options = Mapping[str, Any]


def from_strides(options: Options, axes: int) -> tuple[int, ...]:
    """What a network with a stride at each level divides every axis by."""
    steps = [per_axis("strides", stride, axes) for stride in options["strides"]]
    return tuple(math.prod(sizes) for sizes in zip(*steps, strict=True))


def constant(divisor: int) -> Callable[[Options, int], tuple[int, ...]]:
    """Of a network that halves all axes alike, so many times."""
    return lambda options, axes: (divisor,) * axes


def per_axis(option: str, value: int | Sequence[int], axes: int) -> tuple[int, ...]:
    """One number for all axes, or one for each; ValueError for another number of them."""
    sizes = (value,) * axes if isinstance(value, int) else tuple(value)
    if len(sizes) != axes:
        raise ValueError(f"model.{option} must have one number for all axes, or {axes}, not {value!r}")
    return sizes


@dataclass(frozen=True)
class MonaiNetwork:
    """How a MONAI class is made and used."""

    arguments: dict[str, Any]
    """Beside the channels."""
    divisor: Callable[[Options, int], tuple[int, ...]]
    """By its options and the number of axes."""
    of_volumes: dict[str, Any] = field(default_factory=dict)
    """Arguments that are others over three axes."""
    unused: str = "(?!)"
    """Pattern for the parameters that it has and never uses; the default matches none."""


WIDTHS = (32, 64, 128, 256, 512)
VOLUME_WIDTHS = (32, 64, 128, 256, 320)  # as nnU-Net's
FIVE_LEVELS = {"channels": WIDTHS, "strides": (2, 2, 2, 2)}
OF_VOLUMES = {"channels": VOLUME_WIDTHS}
MONAI: dict[str, MonaiNetwork] = {
    "AttentionUnet": MonaiNetwork(FIVE_LEVELS, from_strides, OF_VOLUMES),
    "BasicUNet": MonaiNetwork({"features": (*WIDTHS, 32)}, constant(16), {"features": (*VOLUME_WIDTHS, 32)}),
    "BasicUNetPlusPlus": MonaiNetwork(
        {"features": (*WIDTHS, 32)}, constant(16), {"features": (*VOLUME_WIDTHS, 32)}, r"final_conv_0_[123]"
    ),
    "DynUNet": MonaiNetwork({"strides": (1, 2, 2, 2, 2)}, from_strides),
    "SegResNet": MonaiNetwork(
        {"init_filters": 32, "blocks_down": (1, 2, 2, 4)},
        lambda options, axes: (2 ** (len(options["blocks_down"]) - 1),) * axes,
    ),
    "SwinUNETR": MonaiNetwork(
        {"feature_size": 48, "patch_size": 2}, lambda options, axes: (options["patch_size"] ** 5,) * axes
    ),
    "UNETR": MonaiNetwork({"img_size": 256}, constant(16), {"img_size": 96}, r"norm_cross_attn"),
    "UNet": MonaiNetwork({**FIVE_LEVELS, "num_res_units": 2}, from_strides, OF_VOLUMES),
    "VNet": MonaiNetwork({}, constant(16)),
}


class ScaledDynUNet(LibraryNetwork):
    """A DynUNet with deep supervision: in training mode a list of logits, the finest first, each at its own scale.

    MONAI's own forward resizes all of them to the finest, and stacks them.
    """

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        network: Any = self.network
        x = network.input_block(self.checked(x))
        skips = [x]
        for down in network.downsamples:
            x = down(x)
            skips.append(x)
        x = network.bottleneck(x)
        maps: list[Tensor] = []  # the finest first
        for up, skip in zip(network.upsamples, skips[::-1], strict=True):
            x = up(x, skip)
            maps.insert(0, x)
        logits: Tensor = network.output_block(x)
        if not self.training:
            return logits
        return [logits, *(head(x) for head, x in zip(network.deep_supervision_heads, maps[1:], strict=False))]


def axes_of(rest: str, options: Options) -> int:
    """Spatial axes of a network with such options; ValueError for an unknown one, or another number than 2 or 3."""
    if rest not in MONAI:
        raise ValueError(f"unknown model 'monai:{rest}'; {suggest(f'monai:{rest}', [f'monai:{x}' for x in MONAI])}")
    axes = options.get("spatial_dims", 2)
    if axes not in (2, 3) or isinstance(axes, bool):
        raise ValueError(f"model.spatial_dims must be 2 or 3, not {axes!r}")
    if rest == "VNet" and axes == 2:
        raise ValueError("monai:VNet takes volumes: set model.spatial_dims to 3")
    return int(axes)


def monai_network(rest: str, *, num_classes: int, in_channels: int, **options: Any) -> LibraryNetwork:
    """`rest` is a class of `monai.networks.nets`, one of `MONAI`."""
    name = f"monai:{rest}"
    axes, made = axes_of(rest, options), MONAI[rest]
    channels = {"in_channels": in_channels, "out_channels": num_classes}
    at_one_scale = ["deep_supervision"] if rest == "BasicUNetPlusPlus" else []  # its other maps are of no use here
    try:
        from monai.networks import nets

        check_options(name, getattr(nets, rest), options, taken=(*channels, *at_one_scale))
        given = {**made.arguments, **(made.of_volumes if axes == 3 else {}), **options, "spatial_dims": axes}
        if rest == "DynUNet":
            given = _dyn_unet(given)
        network = build(name, getattr(nets, rest), **channels, **given)
    except ImportError as error:  # einops is MONAI's own optional dependency
        raise missing(name, "monai and einops", error) from None
    for key, parameter in network.named_parameters():
        if re.search(made.unused, key):
            parameter.requires_grad = False  # else DistributedDataParallel waits for its gradient
    divisors = made.divisor(given, axes)
    size = per_axis("img_size", given["img_size"], axes) if "img_size" in given else None
    wrapped = ScaledDynUNet if rest == "DynUNet" and given["deep_supervision"] else LibraryNetwork
    return wrapped(network, in_channels, divisors if axes == 3 else math.lcm(*divisors), size)


def _dyn_unet(options: dict[str, Any]) -> dict[str, Any]:
    """With kernels of 3 and upsampling by the strides, where nothing else is said; and with all scales but the coarsest
    in deep supervision, as in nnU-Net."""
    strides = options["strides"]
    if not isinstance(strides, Sequence) or len(strides) < 3:
        raise ValueError(f"monai:DynUNet: model.strides must be those of three or more levels, not {strides!r}")
    defaults = {
        "kernel_size": [3] * len(strides),
        "upsample_kernel_size": strides[1:],
        "deep_supervision": False,
        "deep_supr_num": max(1, len(strides) - 3),
    }
    return defaults | options
