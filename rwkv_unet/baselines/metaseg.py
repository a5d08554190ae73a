"""MetaSeg: a convolutional encoder of large kernels, and a decoder whose attention has one channel a head.

B. Kang, S. Moon, Y. Cho, H. Yu, S.-J. Kang, "MetaSeg: MetaFormer-based Global Contexts-aware Network for Efficient
Semantic Segmentation", WACV 2024, https://arxiv.org/abs/2408.07576, its global meta block and channel reduction
attention (CRA), in its sizes T and B. The encoder, MSCAN, is that of SegNeXt, https://arxiv.org/abs/2209.08575.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn

from rwkv_unet.baselines.options import check_dims
from rwkv_unet.baselines.swin import drop_path_rates
from rwkv_unet.baselines.tokenized import init_weights
from rwkv_unet.images import check_images
from rwkv_unet.layers import resize

DIMS, DEPTHS, WIDTH = (64, 128, 320, 512), (3, 3, 12, 3), 768
MLP_RATIOS = (8, 8, 4, 4)
KERNELS = (7, 11, 21)
LAYER_SCALE = 0.01
HEADS, POOLS = (2, 4, 8), (8, 4, 2)
"""Of the decoder's three scales: all are pooled to a stride of 64."""
DECODER_MLP_RATIO, DROPOUT = 2, 0.1


class MetaSeg(nn.Module):
    """Segments (B, in_channels, H, W) into logits (B, num_classes, H, W); the defaults are size B."""

    divisor = 32

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 3,
        *,
        dims: Sequence[int] = DIMS,
        depths: Sequence[int] = DEPTHS,
        width: int = WIDTH,
        drop_path: float = 0.1,
    ) -> None:
        super().__init__()
        check_dims(dims, levels=4)
        self.in_channels = in_channels
        rates = drop_path_rates(drop_path, depths)
        self.encoder = nn.ModuleList(
            Stage(before, dim, ratio, stage_rates, first=i == 0)
            for i, (before, dim, ratio, stage_rates) in enumerate(
                zip((in_channels, *dims), dims, MLP_RATIOS, rates, strict=False)
            )
        )
        self.decoder = nn.ModuleList(
            GlobalBlock(dim, heads, pool, drop_path) for dim, heads, pool in zip(dims[1:], HEADS, POOLS, strict=True)
        )
        self.join = nn.Sequential(
            nn.Conv2d(sum(dims[1:]), width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Dropout2d(DROPOUT),
        )
        self.head = nn.Conv2d(width, num_classes, 1)
        self.encoder.apply(init_weights)
        self.decoder.apply(init_weights)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, num_classes, H, W); ValueError for an image of the wrong shape."""
        x = y = check_images(x, in_channels=self.in_channels, divisor=self.divisor)
        features = []
        for stage in self.encoder:
            y = stage(y)
            features.append(y)
        size = features[1].shape[2:]
        scales = [resize(block(y), size) for block, y in zip(self.decoder, features[1:], strict=True)]
        return resize(self.head(self.join(torch.cat(scales[::-1], 1))), x.shape[2:])


class Stage(nn.Module):
    """Half the size, or a quarter in the first one, and blocks: (B, C, H, W) -> (B, C', H', W')."""

    def __init__(self, in_dim: int, dim: int, mlp_ratio: int, drop_paths: Sequence[float], *, first: bool) -> None:
        super().__init__()
        stem = [*conv_norm(in_dim, dim // 2), nn.GELU(), *conv_norm(dim // 2, dim)]
        self.embedding = nn.Sequential(*(stem if first else conv_norm(in_dim, dim)))
        self.blocks = nn.Sequential(*(ConvBlock(dim, mlp_ratio, drop_path) for drop_path in drop_paths))
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.embedding(x))
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def conv_norm(in_dim: int, out_dim: int) -> list[nn.Module]:
    return [nn.Conv2d(in_dim, out_dim, 3, stride=2, padding=1), nn.BatchNorm2d(out_dim)]


class ConvBlock(nn.Module):
    """MSCAN's block: attention by convolutions of several lengths, then a feed-forward with a depthwise convolution."""

    def __init__(self, dim: int, mlp_ratio: int, drop_path: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(dim), nn.BatchNorm2d(dim)
        self.attention = nn.Sequential(nn.Conv2d(dim, dim, 1), nn.GELU(), StripGate(dim), nn.Conv2d(dim, dim, 1))
        hidden = mlp_ratio * dim
        self.mlp = nn.Sequential(
            nn.Conv2d(dim, hidden, 1), depthwise(hidden, (3, 3)), nn.GELU(), nn.Conv2d(hidden, dim, 1)
        )
        self.scale1, self.scale2 = (nn.Parameter(torch.full((dim, 1, 1), LAYER_SCALE)) for _ in range(2))
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.drop_path(self.scale1 * (self.attention(y) + y))
        return x + self.drop_path(self.scale2 * self.mlp(self.norm2(x)))


class StripGate(nn.Module):
    """x times the mix of a 5 x 5 depthwise convolution of it and of strips of that, of each length in turn."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.local = depthwise(dim, (5, 5))
        self.strips = nn.ModuleList(
            nn.Sequential(depthwise(dim, (1, kernel)), depthwise(dim, (kernel, 1))) for kernel in KERNELS
        )
        self.mix = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.local(x)
        return x * self.mix(y + sum(strip(y) for strip in self.strips))


def depthwise(dim: int, kernel: tuple[int, int]) -> nn.Conv2d:
    return nn.Conv2d(dim, dim, kernel, padding=(kernel[0] // 2, kernel[1] // 2), groups=dim)


class GlobalBlock(nn.Module):
    """Global meta block: CRA and a feed-forward of the decoder, (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, dim: int, heads: int, pool: int, drop_path: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = ChannelReductionAttention(dim, heads, pool)
        hidden = DECODER_MLP_RATIO * dim
        self.mlp = nn.Sequential(
            nn.Linear(dim, hidden), nn.GELU(), nn.Dropout(drop_path), nn.Linear(hidden, dim), nn.Dropout(drop_path)
        )
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)  # (B, H, W, C)
        x = x + self.drop_path(self.attention(self.norm1(x)))
        return (x + self.drop_path(self.mlp(self.norm2(x)))).permute(0, 3, 1, 2)


class ChannelReductionAttention(nn.Module):
    """CRA on (B, H, W, C): queries and keys of one channel a head, keys and values of the pooled map."""

    def __init__(self, dim: int, heads: int, pool: int) -> None:
        super().__init__()
        self.heads, self.pool = heads, pool
        self.scale = 1 / math.sqrt(dim // heads)
        self.q, self.k = nn.Linear(dim, heads, bias=False), nn.Linear(dim, heads, bias=False)
        self.v, self.proj = nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim)
        self.pooled = nn.Sequential(nn.Linear(dim, dim), nn.LayerNorm(dim), nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        kernel = [min(self.pool, side) for side in x.shape[1:3]]
        source = self.pooled(F.avg_pool2d(x.permute(0, 3, 1, 2), kernel).permute(0, 2, 3, 1)).flatten(1, 2)
        q, k, v = (
            layer(y).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, y in ((self.q, x.flatten(1, 2)), (self.k, source), (self.v, source))
        )
        out = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        return self.proj(out.transpose(1, 2).flatten(2)).view_as(x)
