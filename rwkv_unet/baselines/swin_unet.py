"""Swin-UNet: a U-Net of shifted-window transformers alone, without a convolution but the first and the last.

H. Cao et al., "Swin-Unet: Unet-like Pure Transformer for Medical Image Segmentation", ECCV 2022 workshops,
https://arxiv.org/abs/2105.05537, Figure 1. The encoder is timm's Swin-T with two blocks a stage. As the authors code
it, the decoder has two blocks a stage too, and a skip is what a stage of the encoder begins with.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rwkv_unet.baselines.swin import (
    DIVISOR,
    STRIDE,
    PatchExpand,
    drop_path_rates,
    init_transformer,
    swin_blocks,
    swin_encoder,
)
from rwkv_unet.images import check_images

DEPTHS = (2, 2, 2, 2)


class SwinUNet(nn.Module):
    """Segments (B, in_channels, H, W) into logits (B, num_classes, H, W)."""

    divisor = DIVISOR

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 3,
        *,
        encoder: str = "swin_tiny_patch4_window7_224",
        drop_path: float = 0.2,
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.encoder = swin_encoder(encoder, in_channels, depths=DEPTHS, drop_path=drop_path)
        dims = [info["num_chs"] for info in self.encoder.feature_info]
        heads = [stage.blocks[0].attn.num_heads for stage in self.encoder.layers]
        rates = drop_path_rates(drop_path, DEPTHS)
        up = range(len(dims) - 2, -1, -1)
        self.upsamplings = nn.ModuleList(PatchExpand(dims[i + 1], dims[i], 2) for i in up)
        self.joins = nn.ModuleList(nn.Linear(2 * dims[i], dims[i]) for i in up)
        self.decoder = nn.ModuleList(swin_blocks(dims[i], heads[i], rates[i], STRIDE * 2**i) for i in up)
        self.norm = nn.LayerNorm(dims[0])
        self.full_size = PatchExpand(dims[0], dims[0], STRIDE)
        for module in (self.upsamplings, self.joins, self.decoder, self.full_size):
            module.apply(init_transformer)
        self.head = nn.Conv2d(dims[0], num_classes, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, num_classes, H, W); ValueError for an image of the wrong shape."""
        x = self.encoder.patch_embed(check_images(x, in_channels=self.in_channels, divisor=self.divisor))
        skips = []
        for stage in self.encoder.layers:
            x = stage.downsample(x)  # (B, H, W, C)
            skips.append(x)
            x = stage.blocks(x)
        skips.pop()  # the deepest stage is where the decoder starts
        x = self.encoder.norm(x)
        for upsample, join, blocks in zip(self.upsamplings, self.joins, self.decoder, strict=True):
            x = blocks(join(torch.cat([upsample(x), skips.pop()], -1)))
        return self.head(self.full_size(self.norm(x)).permute(0, 3, 1, 2))
