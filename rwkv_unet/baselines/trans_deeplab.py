"""TransDeepLab: DeepLabv3+ of shifted-window transformers alone, whose pyramid pools by windows of several sizes.

R. Azad et al., "TransDeepLab: Convolution-Free Transformer-based DeepLab v3+ for Medical Image Segmentation", PRIME at
MICCAI 2022, https://arxiv.org/abs/2208.00713. The encoder is timm's Swin-T without its last stage; the pyramid (SSPP)
has two levels, windows of 7 and 14, as in the authors' best model on Synapse.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rwkv_unet.baselines.pvt import ChannelAttention, SpatialAttention
from rwkv_unet.baselines.swin import PatchExpand, init_transformer, swin_blocks, swin_encoder, swin_stages
from rwkv_unet.images import check_images

DEPTHS = (2, 2, 6)
HEADS = 3
LEVELS = {7: 2, 14: 1}
"""Side of a level's windows: blocks. 14 is the whole map of an image of 224, whose windows are not shifted."""
DROPOUT = 0.1


class TransDeepLab(nn.Module):
    """Segments (B, in_channels, H, W) into logits (B, num_classes, H, W)."""

    divisor = 16

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 3,
        *,
        encoder: str = "swin_tiny_patch4_window7_224",
        drop_path: float = 0.1,
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.encoder = swin_encoder(encoder, in_channels, depths=DEPTHS, drop_path=drop_path)
        self.encoder.norm = nn.Identity()
        low, _, high = (info["num_chs"] for info in self.encoder.feature_info)
        self.low_norm = nn.LayerNorm(low)
        self.pyramid = Pyramid(high, low, drop_path)
        self.decoder = nn.Sequential(
            *swin_blocks(low, HEADS, 2 * [drop_path], stride=16),
            PatchExpand(low, low, 2),
            *swin_blocks(low, HEADS, 2 * [drop_path], stride=8),
            PatchExpand(low, low, 2),
        )
        self.joined = nn.Sequential(
            *swin_blocks(2 * low, HEADS, 6 * [0.0], stride=4),
            PatchExpand(2 * low, 2 * low, 2),
            nn.LayerNorm(2 * low),
            PatchExpand(2 * low, 2 * low, 2),
        )
        self.decoder.apply(init_transformer)
        self.joined.apply(init_transformer)
        self.head = nn.Conv2d(2 * low, num_classes, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, num_classes, H, W); ValueError for an image of the wrong shape."""
        x = check_images(x, in_channels=self.in_channels, divisor=self.divisor)
        low, _, high = swin_stages(self.encoder, x)  # (B, H, W, C)
        y = self.decoder(self.pyramid(high))
        return self.head(self.joined(torch.cat([self.low_norm(low), y], -1)).permute(0, 3, 1, 2))


class Pyramid(nn.Module):
    """SSPP: blocks of every size of windows beside one another, joined by attention over channels and positions."""

    def __init__(self, in_dim: int, out_dim: int, drop_path: float) -> None:
        super().__init__()
        self.levels = nn.ModuleList(
            swin_blocks(in_dim, HEADS, blocks * [drop_path], stride=16, window=window)
            for window, blocks in LEVELS.items()
        )
        dim = len(LEVELS) * in_dim
        self.channel_attention = ChannelAttention(dim, reduction=12)
        self.spatial_attention = SpatialAttention(kernel_size=1, bias=True)
        self.proj = nn.Linear(dim, out_dim)
        self.act, self.drop = nn.ReLU(), nn.Dropout(DROPOUT)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C')."""
        x = torch.cat([level(x) for level in self.levels], -1).permute(0, 3, 1, 2)
        x = x + self.spatial_attention(self.channel_attention(x))
        return self.drop(self.act(self.proj(x.permute(0, 2, 3, 1))))
