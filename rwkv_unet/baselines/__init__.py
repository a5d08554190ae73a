"""The networks that the paper compares with (Tables III to VI and XIV), one file each, written from their papers.

All of them take (B, in_channels, H, W) and give logits (B, num_classes, H, W), those with `deep_supervision` a list of
such logits in training mode; `divisor` is what H and W have to be
divisible by. They are made by `rwkv_unet.create_model`, as those of other libraries are (`libraries`,
`monai_networks`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from rwkv_unet.baselines.att_unet import AttentionUNet
from rwkv_unet.baselines.emcad import EMCAD
from rwkv_unet.baselines.fcbformer import FCBFormer
from rwkv_unet.baselines.h_vmunet import HVMUNet
from rwkv_unet.baselines.hiformer import HiFormer
from rwkv_unet.baselines.levit_unet import LeViTUNet
from rwkv_unet.baselines.mamba_unet import MambaUNet
from rwkv_unet.baselines.metaseg import MetaSeg
from rwkv_unet.baselines.missformer import MISSFormer
from rwkv_unet.baselines.mt_unet import MTUNet
from rwkv_unet.baselines.options import check_options
from rwkv_unet.baselines.pvt_cascade import PVTCascade
from rwkv_unet.baselines.pvtformer import PVTFormer
from rwkv_unet.baselines.rolling_unet import RollingUNet
from rwkv_unet.baselines.samed import SAMS, SAMed
from rwkv_unet.baselines.swin_unet import SwinUNet
from rwkv_unet.baselines.trans_cascade import TransCascade
from rwkv_unet.baselines.trans_deeplab import TransDeepLab
from rwkv_unet.baselines.transunet import TransUNet
from rwkv_unet.baselines.u_kan import UKAN
from rwkv_unet.baselines.uctransnet import UCTransNet
from rwkv_unet.baselines.unet import UNet
from rwkv_unet.baselines.unet_plus_plus import UNetPlusPlus
from rwkv_unet.baselines.unext import SMALL_DIMS, UNeXt
from rwkv_unet.baselines.vit_cup import ViTCup
from rwkv_unet.baselines.vm_unet import VMUNet
from rwkv_unet.baselines.zig_rir import ZigRiR

BASELINES: dict[str, Callable[..., nn.Module]] = {
    "unet": UNet,
    "att_unet": AttentionUNet,
    "unet_plus_plus": UNetPlusPlus,
    "transunet": TransUNet,
    "fcbformer": FCBFormer,
    "unext": UNeXt,
    "unext_s": partial(UNeXt, dims=SMALL_DIMS),
    "pvt_cascade": PVTCascade,
    "rolling_unet_s": partial(RollingUNet, width=16, drop=0.1),
    "rolling_unet_m": partial(RollingUNet, width=32, drop=0.2),
    "rolling_unet_l": partial(RollingUNet, width=64, drop=0.3),
    "emcad": EMCAD,
    "u_kan": UKAN,
    "swin_unet": SwinUNet,
    "missformer": MISSFormer,
    "uctransnet": UCTransNet,
    "trans_deeplab": TransDeepLab,
    "hiformer_s": partial(HiFormer, depths=(1, 1), heads=(3, 3), mlp_ratios=(1.0, 1.0)),
    "hiformer_b": partial(HiFormer, encoder="resnet50", depths=(1, 2), heads=(6, 12), mlp_ratios=(2.0, 2.0)),
    "hiformer_l": HiFormer,
    "levit_unet_128s": partial(LeViTUNet, encoder="levit_128s", drop_path=0.0),
    "levit_unet_192": partial(LeViTUNet, encoder="levit_192", drop_path=0.0),
    "levit_unet_384": LeViTUNet,
    "mt_unet": MTUNet,
    "metaseg_t": partial(MetaSeg, dims=(32, 64, 160, 256), depths=(3, 3, 5, 2), width=128),
    "metaseg_b": MetaSeg,
    "pvtformer": PVTFormer,
    "trans_cascade": TransCascade,
    "vit_cup": ViTCup,
    "r50_vit_cup": partial(TransUNet, num_skips=0),
    "vm_unet": VMUNet,
    "mamba_unet": MambaUNet,
    "h_vmunet": HVMUNet,
    "zig_rir": ZigRiR,
    "samed_b": SAMed,
    "samed_h": partial(SAMed, encoder=SAMS[-1]),
}


def timm_encoder(name: str) -> str | None:
    """The timm encoder that a baseline has unless its `encoder` is another; None if its encoder is no timm model."""
    parameters = inspect.signature(BASELINES[name]).parameters if name in BASELINES else {}
    return parameters["encoder"].default if "encoder" in parameters else None


def has_deep_supervision(name: str) -> bool:
    """Whether a network has logits at several scales to train with: its option `deep_supervision`."""
    return name in BASELINES and "deep_supervision" in inspect.signature(BASELINES[name]).parameters


def create_baseline(name: str, *, num_classes: int, in_channels: int, **options: Any) -> nn.Module:
    """One of `BASELINES` with random weights; `options` are the arguments of its class, ValueError for any other."""
    check_options(name, BASELINES[name], options, taken=("num_classes", "in_channels"))
    return BASELINES[name](num_classes=num_classes, in_channels=in_channels, **options)
