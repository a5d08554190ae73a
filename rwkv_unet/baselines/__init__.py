"""The networks that the paper compares with (Tables III to VI), one file each, written from their papers.

All of them take (B, in_channels, H, W) and give logits (B, num_classes, H, W); `divisor` is what H and W have to be
divisible by. They are made by `rwkv_unet.create_model`, as those of other libraries are (`libraries`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from rwkv_unet.baselines.att_unet import AttentionUNet
from rwkv_unet.baselines.options import check_options
from rwkv_unet.baselines.unet import UNet
from rwkv_unet.baselines.unet_plus_plus import UNetPlusPlus

BASELINES: dict[str, Callable[..., nn.Module]] = {
    "unet": UNet,
    "att_unet": AttentionUNet,
    "unet_plus_plus": UNetPlusPlus,
}


def create_baseline(name: str, *, num_classes: int, in_channels: int, **options: Any) -> nn.Module:
    """One of `BASELINES` with random weights; `options` are the arguments of its class, ValueError for any other."""
    check_options(name, BASELINES[name], options, taken=("num_classes", "in_channels"))
    return BASELINES[name](num_classes=num_classes, in_channels=in_channels, **options)
