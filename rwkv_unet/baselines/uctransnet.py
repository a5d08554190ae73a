"""UCTransNet: a U-Net whose skip connections are rebuilt by attention between the channels of all levels.

H. Wang, P. Cao, J. Wang, O. R. Zaiane, "UCTransNet: Rethinking the Skip Connections in U-Net from a Channel-wise
Perspective with Transformer", AAAI 2022, https://arxiv.org/abs/2109.04335, its CCT (channel-wise cross fusion
transformer) and CCA (channel-wise cross attention).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rwkv_unet.baselines.unet import conv_norm_relu, double_conv
from rwkv_unet.images import check_images
from rwkv_unet.layers import resize

LAYERS = 4
HEADS = 4
DROPOUT = 0.1
GRID = 14
"""Side of the grid of the position embeddings, that of images of 224; resized for others."""
NORM_EPS = 1e-6


class UCTransNet(nn.Module):
    """Segments (B, in_channels, H, W) into logits (B, num_classes, H, W); `width` is that of the first level."""

    divisor = 16

    def __init__(self, num_classes: int, in_channels: int = 3, *, width: int = 64) -> None:
        super().__init__()
        self.in_channels = in_channels
        dims = [width, 2 * width, 4 * width, 8 * width]
        levels = zip(dims, [*dims[1:], dims[-1]], strict=True)
        self.encoder = nn.ModuleList(
            [nn.Sequential(*conv_norm_relu(in_channels, width)), *(double_conv(i, o) for i, o in levels)]
        )
        self.pool = nn.MaxPool2d(2)
        self.skips = ChannelTransformer(dims)
        self.upsample = nn.Upsample(scale_factor=2)
        self.gates = nn.ModuleList(ChannelGate(dim) for dim in reversed(dims))
        self.decoder = nn.ModuleList(double_conv(2 * dim, max(dim // 2, width)) for dim in reversed(dims))
        self.head = nn.Conv2d(width, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, num_classes, H, W); ValueError for an image of the wrong shape."""
        x = check_images(x, in_channels=self.in_channels, divisor=self.divisor)
        features: list[Tensor] = []
        for level in self.encoder:
            features.append(level(self.pool(features[-1]) if features else x))
        *skips, x = features
        skips = self.skips(skips)
        for gate, conv in zip(self.gates, self.decoder, strict=True):
            x = self.upsample(x)
            x = conv(torch.cat([gate(skips.pop(), x), x], 1))
        return self.head(x)


class ChannelTransformer(nn.Module):
    """CCT: every level as patches of one grid, a transformer of channels, and back to full size, added to the level."""

    def __init__(self, dims: Sequence[int]) -> None:
        super().__init__()
        patches = [2 ** (len(dims) - i) for i in range(len(dims))]
        self.embeddings = nn.ModuleList(
            nn.Conv2d(dim, dim, patch, stride=patch) for dim, patch in zip(dims, patches, strict=True)
        )
        self.positions = nn.ParameterList(nn.Parameter(torch.zeros(1, dim, GRID, GRID)) for dim in dims)
        self.drop = nn.Dropout(DROPOUT)
        self.layers = nn.ModuleList(ChannelBlock(dims) for _ in range(LAYERS))
        self.norms = norms(dims)
        self.reconstructions = nn.ModuleList(
            nn.Sequential(nn.Upsample(scale_factor=patch), nn.Conv2d(dim, dim, 1), nn.BatchNorm2d(dim), nn.ReLU())
            for dim, patch in zip(dims, patches, strict=True)
        )

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Features (B, C, H, W) of every level -> the same."""
        grids = [embed(x) for embed, x in zip(self.embeddings, features, strict=True)]
        tokens = [
            self.drop((x + resize(position, x.shape[2:])).flatten(2).transpose(1, 2))
            for x, position in zip(grids, self.positions, strict=True)
        ]
        for layer in self.layers:
            tokens = layer(tokens)
        maps = [
            norm(x).transpose(1, 2).reshape(grid.shape) for norm, x, grid in zip(self.norms, tokens, grids, strict=True)
        ]
        return [x + rebuild(y) for x, y, rebuild in zip(features, maps, self.reconstructions, strict=True)]


class ChannelBlock(nn.Module):
    """Channels of every level attend to those of all of them, then an MLP a level; tokens (B, N, C) a level."""

    def __init__(self, dims: Sequence[int]) -> None:
        super().__init__()
        self.attention_norms, self.all_norm = norms(dims), nn.LayerNorm(sum(dims), eps=NORM_EPS)
        self.attention = ChannelAttention(dims)
        self.mlp_norms = norms(dims)
        self.mlps = nn.ModuleList(mlp(dim) for dim in dims)

    def forward(self, tokens: list[Tensor]) -> list[Tensor]:
        every = self.all_norm(torch.cat(tokens, -1))
        normed = [norm(x) for norm, x in zip(self.attention_norms, tokens, strict=True)]
        tokens = [x + y for x, y in zip(tokens, self.attention(normed, every), strict=True)]
        return [x + mlp(norm(x)) for x, norm, mlp in zip(tokens, self.mlp_norms, self.mlps, strict=True)]


class ChannelAttention(nn.Module):
    """Similarity of channels, normalised over each head's matrix, weighs the channels of all levels.

    Every head has the full width; their outputs are averaged.
    """

    def __init__(self, dims: Sequence[int]) -> None:
        super().__init__()
        total = sum(dims)
        self.scale = 1 / math.sqrt(total)
        self.queries = nn.ModuleList(nn.Linear(dim, HEADS * dim, bias=False) for dim in dims)
        self.key, self.value = (nn.Linear(total, HEADS * total, bias=False) for _ in range(2))
        self.norm = nn.InstanceNorm2d(HEADS)
        self.drop = nn.Dropout(DROPOUT)
        self.outputs = nn.ModuleList(nn.Linear(dim, dim, bias=False) for dim in dims)

    def forward(self, tokens: list[Tensor], every: Tensor) -> list[Tensor]:
        key, value = (heads(layer(every)) for layer in (self.key, self.value))  # (B, HEADS, N, sum of C)
        outputs = []
        for x, query, output in zip(tokens, self.queries, self.outputs, strict=True):
            similarity = torch.matmul(heads(query(x)).transpose(2, 3), key) * self.scale  # (B, HEADS, C, sum of C)
            weights = self.drop(F.softmax(self.norm(similarity), dim=-1))
            context = torch.matmul(weights, value.transpose(2, 3)).mean(1)  # (B, C, N)
            outputs.append(self.drop(output(context.transpose(1, 2))))
        return outputs


def heads(x: Tensor) -> Tensor:
    """(B, N, HEADS C) -> (B, HEADS, N, C)."""
    return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)


class ChannelGate(nn.Module):
    """CCA: a skip's channels (B, C, H, W) weighted by the means of it and of the decoder's signal."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.skip, self.signal = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, skip: Tensor, signal: Tensor) -> Tensor:
        by_skip, by_signal = (F.adaptive_avg_pool2d(x, 1).flatten(1) for x in (skip, signal))
        weight = torch.sigmoid((self.skip(by_skip) + self.signal(by_signal)) / 2)
        return self.relu(skip * weight[:, :, None, None])


def norms(dims: Sequence[int]) -> nn.ModuleList:
    return nn.ModuleList(nn.LayerNorm(dim, eps=NORM_EPS) for dim in dims)


def mlp(dim: int) -> nn.Sequential:
    wide, narrow = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
    for layer in (wide, narrow):
        nn.init.xavier_uniform_(layer.weight)
        nn.init.normal_(layer.bias, std=1e-6)
    return nn.Sequential(wide, nn.GELU(), narrow)
