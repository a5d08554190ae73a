"""A trained model made faster where it is only used."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from rwkv_unet.layers import ConvNormAct
from rwkv_unet.shifts import OmniShift
from rwkv_unet.spatial_mix import SpatialMix
from rwkv_unet.volumetric import ConvNormAct3D

AnyModule = TypeVar("AnyModule", bound=nn.Module)


def fuse_for_inference(model: AnyModule) -> AnyModule:
    """Fold BatchNorms into the convolutions before them, add up the kernels of every OmniShift, and lay the weights out
    in channels_last, in place.

    The same function, up to rounding. The model can no longer be trained, and its weights have other names.

    Raises:
        ValueError: if the model is in training mode.
    """
    for layer in model.modules():
        if isinstance(layer, ConvNormAct | ConvNormAct3D) and layer.training:
            raise ValueError("only a model in evaluation mode can be fused; call model.eval() first")
        if isinstance(layer, ConvNormAct) and isinstance(layer.norm, nn.BatchNorm2d):
            layer.conv = fuse_conv_bn_eval(layer.conv, layer.norm)
            layer.norm = nn.Identity()
        if isinstance(layer, ConvNormAct3D) and isinstance(norm := layer[1], nn.BatchNorm3d):
            layer[0], layer[1] = fuse_conv_bn_eval(layer[0], norm), nn.Identity()  # type: ignore[type-var]
        if isinstance(layer, SpatialMix) and isinstance(layer.shift, OmniShift):
            layer.shift = layer.shift.merged()
    for own in model.parameters():
        if own.dim() == 4:  # over three axes it makes no layer faster
            own.data = own.data.contiguous(memory_format=torch.channels_last)
    return model
