"""What the networks of shifted windows share: the Swin Transformer, for images of any size, and its way up.

Z. Liu et al., "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows", ICCV 2021,
https://arxiv.org/abs/2103.14030. The blocks are timm's; maps that windows of 7 x 7 do not divide are padded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import timm
import torch
from timm.models.swin_transformer import SwinTransformerBlock
from torch import Tensor, nn

from rwkv_unet.config import suggest

SIDE = 224
"""Whether a block shifts its windows goes by images of this side: maps of one window or less are not shifted."""
WINDOW = 7
STRIDE = 4
DIVISOR = 32


def swin_encoder(name: str, in_channels: int, *, depths: Sequence[int] | None = None, drop_path: float) -> Any:
    """timm's Swin Transformer with random weights, without a classifier; `depths` are its blocks a stage."""
    known = timm.list_models("swin_*_patch4_window7_224")
    if name not in known:
        raise ValueError(f"model.encoder: unknown Swin {name!r}; {suggest(name, known)}")
    return timm.create_model(
        name,
        pretrained=False,
        in_chans=in_channels,
        num_classes=0,
        drop_path_rate=drop_path,
        dynamic_img_size=True,
        depths=depths,  # None leaves them as they are
    )


def swin_stages(encoder: Any, x: Tensor) -> list[Tensor]:
    """The maps (B, H, W, C) that its stages end with, shallowest first, of images (B, in_channels, H, W)."""
    x = encoder.patch_embed(x)
    maps = []
    for stage in encoder.layers:
        x = stage(x)
        maps.append(x)
    return maps


def drop_path_rates(rate: float, depths: Sequence[int]) -> list[list[float]]:
    """Stochastic depth of every block of every stage: from 0 for the first to `rate` for the last of all."""
    rates = torch.linspace(0, rate, sum(depths), device="cpu").tolist()
    ends = [sum(depths[: i + 1]) for i in range(len(depths))]
    return [rates[end - depth : end] for end, depth in zip(ends, depths, strict=True)]


def swin_blocks(dim: int, heads: int, drop_paths: Sequence[float], stride: int, window: int = WINDOW) -> nn.Sequential:
    """Blocks on maps (B, H / stride, W / stride, dim), with plain and shifted windows in turn."""
    return nn.Sequential(
        *(
            SwinTransformerBlock(
                dim,
                (SIDE // stride, SIDE // stride),
                heads,
                window_size=window,
                shift_size=i % 2 * (window // 2),
                dynamic_mask=True,
                drop_path=drop_path,
            )
            for i, drop_path in enumerate(drop_paths)
        )
    )


class PatchExpand(nn.Module):
    """(B, H, W, C) -> (B, scale H, scale W, C'): every token becomes a patch of tokens, by one linear layer."""

    def __init__(self, in_dim: int, out_dim: int, scale: int) -> None:
        super().__init__()
        self.scale = scale
        self.expand = nn.Linear(in_dim, scale**2 * out_dim, bias=False)
        self.norm = nn.LayerNorm(out_dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.expand(x).unflatten(-1, (self.scale, self.scale, -1))  # (B, H, W, scale, scale, C')
        return self.norm(x.transpose(2, 3).flatten(3, 4).flatten(1, 2))


def init_transformer(module: nn.Module) -> None:
    """Truncated normal 0.02 in linear layers, no bias."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
