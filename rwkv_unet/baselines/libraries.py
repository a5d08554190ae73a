"""Networks of other libraries, and those of segmentation_models_pytorch by name; the library is optional.

    smp:ARCH-ENCODER    smp:unet-resnet50, smp:unet-tu-pvt_v2_b2 (tu- and any timm name), smp:deeplabv3plus-resnet50

Weights are random. Options are handed to the library's class, as decoder_channels to smp's Unet. MONAI's networks are
in `monai_networks`.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import timm
import torch
from torch import Tensor, nn

from rwkv_unet.baselines.options import check_options
from rwkv_unet.config import suggest
from rwkv_unet.images import check_images

EXAMPLES = ("smp:unet-resnet18", "smp:fpn-tu-pvt_v2_b0", "monai:BasicUNet", "monai:SegResNet", "monai:SwinUNETR")
"""A few names that are enough to try both libraries."""

INSTALL = "pip install 'rwkvctl[baselines]'"


class LibraryNetwork(nn.Module):
    """A library's network (B, in_channels, H, W) -> (B, num_classes, H, W), or of volumes (B, C, D, H, W), that refuses
    images as ours do.

    Args:
        divisor: what H and W must be divisible by, or D, H and W one by one.
        size: (H, W) or (D, H, W) if the network is built for images of one size alone.
    """

    def __init__(
        self,
        network: nn.Module,
        in_channels: int,
        divisor: int | tuple[int, ...],
        size: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.in_channels, self.divisor = in_channels, divisor
        self.size = None if size is None else tuple(size)
        self.network = network

    def forward(self, x: Tensor) -> Any:
        """Logits (B, num_classes, *spatial); ValueError for an image of the wrong shape."""
        y = self.network(self.checked(x))
        return y[-1] if isinstance(y, list) else y  # the outputs of BasicUNetPlusPlus end with the final one

    def checked(self, x: Tensor) -> Tensor:
        """Images as the network takes them; ValueError where it does not."""
        x = check_images(x, in_channels=self.in_channels, divisor=self.divisor)
        if self.size and x.shape[2:] != self.size:
            kind = "images" if len(self.size) == 2 else "volumes"
            size = " x ".join(map(str, self.size))
            raise ValueError(f"the model is built for {kind} of {size}; its option img_size says so")
        return x


def smp_network(rest: str, *, num_classes: int, in_channels: int, **options: Any) -> nn.Module:
    """`rest` is ARCH-ENCODER; weights are never downloaded."""
    name = f"smp:{rest}"
    try:
        import segmentation_models_pytorch as smp
    except ImportError as error:
        raise missing(name, "segmentation-models-pytorch", error) from None
    arch, _, encoder = rest.partition("-")
    architectures = smp.MODEL_ARCHITECTURES_MAPPING
    if arch not in architectures:
        raise ValueError(f"{name}: unknown architecture {arch!r}; {suggest(arch, list(architectures))}")
    _check_smp_encoder(name, encoder, smp.encoders.get_encoder_names())
    channels = {"in_channels": in_channels, "classes": num_classes}
    create = architectures[arch]
    check_options(name, create, options, taken=("encoder_name", "encoder_weights", *channels))
    options = {**_smp_defaults(create, encoder, options), **options}
    network = build(name, create, encoder, encoder_weights=None, **channels, **options)
    return LibraryNetwork(network, in_channels, network.encoder.output_stride)


def _smp_defaults(create: Callable[..., Any], encoder: str, given: dict[str, Any]) -> dict[str, Any]:
    """The defaults of an architecture that must be others for an encoder which reduces images less than 32 times.

    It has fewer stages: the others are left out, their decoder blocks with them. Where an architecture would dilate the
    encoder to a stride of 8 or 16, the encoder keeps its own.
    """
    defaults = {name: parameter.default for name, parameter in inspect.signature(create).parameters.items()}
    stages = _stages_of_timm(encoder)
    depth = given.get("encoder_depth", defaults.get("encoder_depth"))
    if stages is None or stages >= 5 or depth is None:
        return {}
    changed: dict[str, Any] = {}
    if "encoder_output_stride" in defaults:
        changed["encoder_output_stride"] = 2**stages
    if depth <= stages:
        return changed
    changed["encoder_depth"] = stages
    channels = defaults.get("decoder_channels")
    if isinstance(channels, tuple | list) and len(channels) == depth:
        changed["decoder_channels"] = tuple(channels[:stages])
    if create.__name__ == "FPN":  # decodes the encoder's last four maps, however large they are
        changed["upsampling"] = max(1, defaults["upsampling"] >> (depth - stages))
    return changed


def _stages_of_timm(encoder: str) -> int | None:
    """How often a timm encoder halves an image; None for smp's own, and for one that gives no maps."""
    if not encoder.startswith("tu-"):
        return None
    try:
        with torch.device("meta"):
            model: Any = timm.create_model(encoder.removeprefix("tu-"), features_only=True)
    except Exception:  # each family has errors of its own, and smp will meet them too
        return None
    return int(math.log2(model.feature_info.reduction()[-1]))


def _check_smp_encoder(name: str, encoder: str, own: list[str]) -> None:
    if not encoder.removeprefix("tu-"):
        raise ValueError(f"{name}: names no encoder; write for example smp:unet-resnet50")
    of_timm = encoder.startswith("tu-")
    known = [f"tu-{timm_name}" for timm_name in timm.list_models()] if of_timm else own
    if encoder not in known:
        near = suggest(encoder, known)
        where = "timm.list_models() names them" if of_timm else "see get_encoder_names() of smp.encoders"
        raise ValueError(f"{name}: unknown encoder {encoder!r}; {near if near.startswith('did you') else where}")


def build(name: str, create: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    try:
        with torch.device("cpu"):  # SwinUNETR asks tensors for their values, which those of a meta device lack
            return create(*arguments, **options)
    except (TypeError, KeyError, AssertionError, IndexError, RuntimeError, NotImplementedError) as error:
        raise ValueError(f"{name}: {' '.join(str(error).split())}") from None


def missing(name: str, packages: str, error: ImportError) -> ValueError:
    reason = str(error).split("\n")[0].rstrip(".")
    return ValueError(f"{name} needs {packages}: {INSTALL} ({reason})")
