"""LeViT-UNet: a LeViT whose convolutional stem gives the skips, and a decoder that starts from all its stages.

G. Xu, X. Zhang, X. He, X. Wu, "LeViT-UNet: Make Faster Encoders with Transformer for Medical Image Segmentation", PRCV
2023, https://arxiv.org/abs/2107.08623, Figure 1. The encoder is timm's. LeViT itself is made for one image size; here
its attention biases, one for every distance in its grid of 14 x 14, are resized to the image's.
"""

from __future__ import annotations

import math
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rwkv_unet.baselines.transunet import conv_norm_relu
from rwkv_unet.config import suggest
from rwkv_unet.images import check_images
from rwkv_unet.layers import resize

LEVITS = ("levit_128s", "levit_192", "levit_384")
DECODER_DIMS = (512, 256, 128)


class LeViTUNet(nn.Module):
    """Segments (B, in_channels, H, W) into logits (B, num_classes, H, W)."""

    divisor = 16

    def __init__(
        self, num_classes: int, in_channels: int = 3, *, encoder: str = "levit_384", drop_path: float = 0.1
    ) -> None:
        super().__init__()
        if encoder not in LEVITS:
            raise ValueError(f"model.encoder: unknown LeViT {encoder!r}; {suggest(encoder, list(LEVITS))}")
        self.in_channels = in_channels
        levit: Any = timm.create_model(
            encoder, pretrained=False, in_chans=in_channels, num_classes=0, drop_path_rate=drop_path
        )
        self.encoder = levit
        dims: list[int] = list(levit.embed_dim)
        skip_dims = (dims[0] // 2, dims[0] // 4, dims[0] // 8)
        inputs = (dims[0] + sum(dims), *(i + o for i, o in zip(DECODER_DIMS, skip_dims, strict=True)))
        self.decoder = nn.ModuleList(
            nn.Sequential(conv_norm_relu(i, o), conv_norm_relu(o, o))
            for i, o in zip(inputs, DECODER_DIMS, strict=False)
        )
        self.head = nn.Conv2d(inputs[-1], num_classes, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, num_classes, H, W); ValueError for an image of the wrong shape."""
        x = check_images(x, in_channels=self.in_channels, divisor=self.divisor)
        skips, x = self._stem(x)
        maps = [x]
        tokens = x.permute(0, 2, 3, 1)
        for stage in self.encoder.stages:
            tokens = run_stage(stage, tokens)
            maps.append(tokens.permute(0, 3, 1, 2))
        x = torch.cat([to_size(y, x) for y in maps], 1)
        for convs in self.decoder:
            x = torch.cat([convs(upsample(x)), skips.pop()], 1)
        return upsample(self.head(x))

    def _stem(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """Features of strides 2, 4 and 8, and of 16."""
        skips = []
        for layer in self.encoder.stem:
            x = layer(x)
            if isinstance(layer, nn.Hardswish):
                skips.append(x)
        return skips, x


def run_stage(stage: Any, x: Tensor) -> Tensor:
    """A stage of timm's LeViT on a map (B, H, W, C) of any size; stages but the first halve it, rounding up."""
    if not isinstance(stage.downsample, nn.Identity):
        down = stage.downsample
        x = attend(down.attn_downsample, x)
        x = x + down.drop_path(feed_forward(down.mlp, x))
    for block in stage.blocks:
        x = x + block.drop_path1(attend(block.attn, x))
        x = x + block.drop_path2(feed_forward(block.mlp, x))
    return x


def attend(attn: Any, x: Tensor) -> Tensor:
    """LeViT's attention, whose queries are every token (B, H, W, C), or where it downsamples every second."""
    stride = getattr(attn, "stride", 1)
    widths = [attn.key_dim, attn.val_dim]
    y = x[:, ::stride, ::stride]
    if stride == 1:
        q, k, v = heads(attn.qkv, x, attn.num_heads).split([attn.key_dim, *widths], dim=-1)
    else:
        q = heads(attn.q.ln, y, attn.num_heads)
        k, v = heads(attn.kv, x, attn.num_heads).split(widths, dim=-1)
    bias = position_bias(attn.attention_biases, (x.shape[1], x.shape[2]), stride)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype), scale=attn.scale)
    return attn.proj(out.transpose(1, 2).flatten(2)).unflatten(1, y.shape[1:3])


def heads(layer: nn.Module, x: Tensor, count: int) -> Tensor:
    """A layer of tokens, its output cut to heads: (B, H, W, C) -> (B, count, H W, C')."""
    return layer(x.flatten(1, 2)).unflatten(-1, (count, -1)).transpose(1, 2)


def feed_forward(mlp: nn.Module, x: Tensor) -> Tensor:
    return mlp(x.flatten(1, 2)).unflatten(1, x.shape[1:3])


def position_bias(table: Tensor, size: tuple[int, int], stride: int) -> Tensor:
    """What a query adds for a key by their distance: (heads, queries, keys) of a table (heads, rows columns)."""
    side = math.isqrt(table.shape[1])
    table = resize(table.view(1, -1, side, side), size)[0]
    rows, columns = (distances(n, stride, table.device) for n in size)
    return table[:, rows[:, None, :, None], columns[None, :, None, :]].flatten(3, 4).flatten(1, 2)


def distances(n: int, stride: int, device: torch.device) -> Tensor:
    """(queries, n), between every stride-th of n places and all of them."""
    places = torch.arange(n, device=device)
    return (places[::stride, None] - places[None]).abs()


def to_size(x: Tensor, like: Tensor) -> Tensor:
    """Doubled until it is no smaller, then resized."""
    while x.shape[2] < like.shape[2] or x.shape[3] < like.shape[3]:
        x = upsample(x)
    if x.shape[2:] == like.shape[2:]:
        return x
    return F.interpolate(x, like.shape[2:], mode="bilinear", align_corners=True)


def upsample(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
