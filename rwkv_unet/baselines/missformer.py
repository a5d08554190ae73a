"""MISSFormer: a U-shaped transformer whose skip connections are one sequence of the tokens of all scales.

X. Huang, Z. Deng, D. Li, X. Yuan, Y. Fu, "MISSFormer: An Effective Transformer for 2D Medical Image Segmentation", IEEE
TMI 2022, https://arxiv.org/abs/2109.07162, its enhanced transformer block, enhanced Mix-FFN and context bridge.
"""

from __future__ import annotations

from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rwkv_unet.baselines.swin import PatchExpand
from rwkv_unet.baselines.tokenized import DepthwiseConv
from rwkv_unet.images import check_images

DIMS = (64, 128, 320, 512)
HEADS = (1, 2, 5, 8)
REDUCTIONS = (8, 4, 2, 1)
"""Side of the patches that keys and values are means of, scale by scale: the same number at every scale."""
BLOCKS = 2
BRIDGE_DIM = 64
BRIDGE_LAYERS = 4


class MISSFormer(nn.Module):
    """Segments (B, in_channels, H, W) into logits (B, num_classes, H, W)."""

    divisor = 32

    def __init__(self, num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.embeddings = nn.ModuleList(
            nn.Conv2d(before, dim, 7 if i == 0 else 3, stride=4 if i == 0 else 2, padding=3 if i == 0 else 1)
            for i, (before, dim) in enumerate(zip((in_channels, *DIMS), DIMS, strict=False))
        )
        self.embedding_norms = nn.ModuleList(nn.LayerNorm(dim) for dim in DIMS)
        self.stages = nn.ModuleList(blocks(scale) for scale in range(len(DIMS)))
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for dim in DIMS)
        self.bridge = nn.ModuleList(BridgeLayer() for _ in range(BRIDGE_LAYERS))
        up = range(len(DIMS) - 2, -1, -1)
        self.upsamplings = nn.ModuleList(PatchExpand(DIMS[i + 1], DIMS[i + 1] // 2, 2) for i in up)
        self.joins = nn.ModuleList(nn.Linear(DIMS[i + 1] // 2 + DIMS[i], DIMS[i]) for i in up)
        self.decoder = nn.ModuleList(blocks(scale) for scale in up)
        self.full_size = PatchExpand(DIMS[0], DIMS[0], 4)
        self.head = nn.Conv2d(DIMS[0], num_classes, 1)
        for module in (self.upsamplings, self.joins, self.decoder, self.full_size, self.head):
            module.apply(init_xavier)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, num_classes, H, W); ValueError for an image of the wrong shape."""
        x = check_images(x, in_channels=self.in_channels, divisor=self.divisor)
        maps = []  # (B, H, W, C) of every scale
        for embed, before, stage, after in zip(
            self.embeddings, self.embedding_norms, self.stages, self.norms, strict=True
        ):
            maps.append(after(stage(before(embed(x).permute(0, 2, 3, 1)))))
            x = maps[-1].permute(0, 3, 1, 2)
        for layer in self.bridge:
            maps = layer(maps)
        y = maps.pop()
        for upsample, join, stage in zip(self.upsamplings, self.joins, self.decoder, strict=True):
            y = stage(join(torch.cat([upsample(y), maps.pop()], -1)))
        return self.head(self.full_size(y).permute(0, 3, 1, 2))


def blocks(scale: int) -> nn.Sequential:
    return nn.Sequential(*(Block(DIMS[scale], HEADS[scale], REDUCTIONS[scale]) for _ in range(BLOCKS)))


class Block(nn.Module):
    """Attention over reduced keys and values, then the enhanced Mix-FFN: (B, H, W, C) -> (B, H, W, C)."""

    def __init__(self, dim: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = Attention(dim, heads)
        self.reduce = nn.Conv2d(dim, dim, reduction, stride=reduction) if reduction > 1 else None
        self.reduced_norm = nn.LayerNorm(dim) if reduction > 1 else None
        self.mlp = MixFeedForward(dim)

    def forward(self, x: Tensor) -> Tensor:
        y = source = self.norm1(x)
        if self.reduce is not None and self.reduced_norm is not None:
            source = self.reduced_norm(self.reduce(y.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        x = x + self.attention(y.flatten(1, 2), source.flatten(1, 2)).view_as(x)
        return x + self.mlp(self.norm2(x))


class Attention(nn.Module):
    """Queries of tokens (B, N, C), keys and values of others (B, M, C)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.kv, self.proj = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor, source: Tensor) -> Tensor:
        q, k, v = (
            y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in (self.q(x), *self.kv(source).chunk(2, -1))
        )
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class MixFeedForward(nn.Module):
    """Enhanced Mix-FFN: between two linear layers a depthwise convolution with a shortcut, norm, GELU; (B, H, W, C)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.local = DepthwiseConv(4 * dim)
        self.norm = nn.LayerNorm(4 * dim)
        self.act = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        return self.fc2(self.act(self.norm(self.local(x) + x)))


class BridgeLayer(nn.Module):
    """A block over the tokens of all scales, cut to as many channels as the shallowest has; a feed-forward a scale."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(BRIDGE_DIM), nn.LayerNorm(BRIDGE_DIM)
        self.attention = Attention(BRIDGE_DIM, heads=1)
        self.reductions = nn.ModuleList(
            nn.Conv2d(dim, dim, reduction, stride=reduction)
            for dim, reduction in zip(DIMS, REDUCTIONS, strict=True)
            if reduction > 1
        )
        self.reduced_norm = nn.LayerNorm(BRIDGE_DIM)
        self.mlps = nn.ModuleList(MixFeedForward(dim) for dim in DIMS)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Maps (B, H, W, C) of every scale -> the same."""
        x = sequence(maps)
        y = self.norm1(x)
        x = x + self.attention(y, self._reduced(split(y, maps)))
        per_scale = [mlp(y) for mlp, y in zip(self.mlps, split(self.norm2(x), maps), strict=True)]
        return split(x + sequence(per_scale), maps)

    def _reduced(self, maps: list[Tensor]) -> Tensor:
        """Keys and values (B, M, BRIDGE_DIM). Of the reduced maps a token has neighbouring channels' parts, by the
        authors' order of axes; the deepest map is not reduced."""
        *reduced, deepest = maps
        tokens = [
            reduce(y.permute(0, 3, 1, 2)).reshape(len(y), BRIDGE_DIM, -1).transpose(1, 2)
            for reduce, y in zip(self.reductions, reduced, strict=True)
        ]
        return self.reduced_norm(torch.cat([*tokens, sequence([deepest])], 1))


def sequence(maps: list[Tensor]) -> Tensor:
    """Maps (B, H, W, C) as one sequence of tokens (B, N, BRIDGE_DIM)."""
    return torch.cat([y.reshape(len(y), -1, BRIDGE_DIM) for y in maps], 1)


def split(x: Tensor, like: list[Tensor]) -> list[Tensor]:
    """The maps of a sequence, of the shapes of others."""
    counts = [y.shape[1] * y.shape[2] * (y.shape[3] // BRIDGE_DIM) for y in like]
    starts = [0, *accumulate(counts)]
    return [x.narrow(1, at, n).reshape(y.shape) for at, n, y in zip(starts, counts, like, strict=False)]


def init_xavier(module: nn.Module) -> None:
    """Glorot's uniform weights, no bias, in linear layers and convolutions."""
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
