"""Mamba-UNet: a U-Net of visual state space blocks in the shape of Swin-Unet, whose decoder concatenates the skips.

Z. Wang, J.-Q. Zheng, Y. Zhang, G. Cui, L. Li, "Mamba-UNet: UNet-Like Pure Visual Mamba for Medical Image Segmentation",
https://arxiv.org/abs/2402.05079, Figure 2; depths as in the authors' configuration (Apache 2.0).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rwkv_unet.baselines.options import check_depths
from rwkv_unet.baselines.vm_unet import DEPTHS, WIDTH
from rwkv_unet.baselines.vss import (
    LEVELS,
    PATCH,
    PatchEmbedding,
    PatchExpanding,
    PatchMerging,
    doubling_dims,
    drop_paths,
    vss_blocks,
)
from rwkv_unet.images import check_images
from rwkv_unet.layers import LayerNorm
from rwkv_unet.rwkv_unet_enc import init_linear, not_weights


class MambaUNet(nn.Module):
    """Segments (B, in_channels, H, W) into logits (B, num_classes, H, W).

    Args:
        width: of the first level; every other is twice as wide as the one before.
        depths: blocks of the levels, the shallowest first, and of the decoder's.
    """

    divisor = PATCH * 8

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 3,
        *,
        width: int = WIDTH,
        depths: Sequence[int] = DEPTHS,
        drop_path: float = 0.2,
    ) -> None:
        super().__init__()
        dims = doubling_dims(width)
        check_depths(depths, LEVELS)
        self.in_channels = in_channels
        rates = drop_paths(drop_path, depths)
        self.embed = PatchEmbedding(in_channels, dims[0])
        self.levels = nn.ModuleList(vss_blocks(dim, rate) for dim, rate in zip(dims, rates, strict=True))
        self.merges = nn.ModuleList(PatchMerging(dim) for dim in dims[:-1])
        self.norm = LayerNorm(dims[-1])
        self.expands = nn.ModuleList(PatchExpanding(dim, dim // 2) for dim in dims[:0:-1])
        self.fuses = nn.ModuleList(nn.Linear(2 * dim, dim) for dim in dims[-2::-1])
        self.decoder = nn.ModuleList(
            vss_blocks(dim, rate) for dim, rate in zip(dims[-2::-1], rates[-2::-1], strict=True)
        )
        self.decoder_norm = LayerNorm(dims[0])
        self.expand = PatchExpanding(dims[0], dims[0], scale=PATCH)
        self.head = nn.Conv2d(dims[0], num_classes, 1, bias=False)
        self.apply(init_linear)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, num_classes, H, W); ValueError for an image of the wrong shape."""
        x = check_images(x, in_channels=self.in_channels, divisor=self.divisor)
        skips = [self.embed(x)]  # what enters a level, (B, H, W, C)
        for level, merge in zip(self.levels, self.merges, strict=False):
            skips.append(merge(level(skips[-1])))
        x = self.norm(self.levels[-1](skips.pop()))
        for expand, fuse, level in zip(self.expands, self.fuses, self.decoder, strict=True):
            x = level(fuse(torch.cat([expand(x), skips.pop()], 3)))
        return self.head(self.expand(self.decoder_norm(x)).permute(0, 3, 1, 2))

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that are no weights (timm's optimizer factory asks)."""
        return not_weights(self)
