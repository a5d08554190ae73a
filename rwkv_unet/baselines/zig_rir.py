"""Zig-RiR in 2-D: RWKV inside RWKV, on patches and on the 4 x 4 words of each, in zigzag order.

T. Chen, X. Zhou, Z. Tan, Y. Wu, Z. Wang, Z. Ye, T. Gong, Q. Chu, N. Yu, L. Lu, "Zig-RiR: Zigzag RWKV-in-RWKV for
Efficient Medical Image Segmentation", TMI 2025, https://doi.org/10.1109/TMI.2025.3561797.

As in the authors' code (Apache 2.0), tokens are not put back into the order of the image: what a mix adds to a token
comes from the place that the zigzag has brought there, and before the second attention keys and values go through the
zigzag once more, which the gate does not. Sizes need not be square here.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from biwkv import bi_wkv
from rwkv_unet.baselines.options import check_depths, check_dims
from rwkv_unet.baselines.tokenized import init_weights
from rwkv_unet.baselines.unet import conv_norm_relu
from rwkv_unet.baselines.vss import drop_paths
from rwkv_unet.images import check_images
from rwkv_unet.layers import LayerNorm, q_shift
from rwkv_unet.rwkv_unet_enc import not_weights
from rwkv_unet.scan_order import serpentine

DIMS = (64, 128, 256, 512)
WORD_DIMS = (4, 8, 16, 32)
DEPTHS = (2, 4, 9, 2)
WORDS = 4  # a patch has WORDS x WORDS
HIDDEN_RATE = 4


class ZigRiR(nn.Module):
    """Segments (B, in_channels, H, W) into logits (B, num_classes, H, W)."""

    divisor = 64

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 3,
        *,
        dims: Sequence[int] = DIMS,
        depths: Sequence[int] = DEPTHS,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        check_dims(dims, levels=4)
        check_depths(depths, levels=4)
        self.in_channels = in_channels
        self.stem = Stem(in_channels, WORD_DIMS[0], dims[0])
        widths = list(zip(dims, WORD_DIMS, drop_paths(drop_path, depths), strict=True))
        self.levels = nn.ModuleList(Level(dim, word_dim, rates) for dim, word_dim, rates in widths)
        self.merges = nn.ModuleList(Merge(i, o) for i, o in pairwise(dims))
        self.word_merges = nn.ModuleList(Merge(i, o) for i, o in pairwise(WORD_DIMS))
        self.doubles = nn.ModuleList(double_size(dim) for dim in dims)
        for part in (self.stem, self.levels, self.merges, self.word_merges, self.doubles):
            part.apply(init_weights)
        deep_to_shallow = list(zip(dims[:0:-1], dims[-2::-1], strict=True))
        self.upsamplings = nn.ModuleList(nn.ConvTranspose2d(deep, dim, 2, stride=2) for deep, dim in deep_to_shallow)
        self.convs = nn.ModuleList(nn.Sequential(*conv_norm_relu(2 * dim, dim)) for _, dim in deep_to_shallow)
        self.upsample = nn.Upsample(scale_factor=4, mode="bilinear", align_corners=True)
        self.head = nn.Conv2d(dims[0], num_classes, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, num_classes, H, W); ValueError for an image of the wrong shape."""
        words, tokens = self.stem(check_images(x, in_channels=self.in_channels, divisor=self.divisor))
        maps: list[Tensor] = []
        for i, (level, double) in enumerate(zip(self.levels, self.doubles, strict=True)):
            if i:
                words = self.word_merges[i - 1](joined(words, tokens))
                tokens = self.merges[i - 1](tokens)
            words, tokens = level(words, tokens)
            maps.append(double(tokens.permute(0, 3, 1, 2)))
        x = maps.pop()
        for upsample, conv in zip(self.upsamplings, self.convs, strict=True):
            x = conv(torch.cat([upsample(x), maps.pop()], 1))
        return self.head(self.upsample(x))

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that are no weights (timm's optimizer factory asks)."""
        return not_weights(self)


class Stem(nn.Module):
    """(B, C, H, W) -> words (B H W / 64, 4, 4, word_dim), patch by patch, and patches (B, H / 8, W / 8, dim)."""

    def __init__(self, in_channels: int, word_dim: int, dim: int) -> None:
        super().__init__()
        self.common = conv_norm(in_channels, 2 * word_dim, stride=2)
        self.words = conv_norm(2 * word_dim, word_dim)
        self.patches = nn.Sequential(
            conv_norm(2 * word_dim, 4 * word_dim, stride=2),
            conv_norm(4 * word_dim, 8 * word_dim, stride=2),
            conv_norm(8 * word_dim, dim),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.common(x)
        words = self.words(x).permute(0, 2, 3, 1).unflatten(2, (-1, WORDS)).unflatten(1, (-1, WORDS))
        return words.transpose(2, 3).flatten(0, 2), self.patches(x).permute(0, 2, 3, 1)


class Level(nn.Module):
    """Blocks on patches (B, H, W, C), the first of which, of many the first two, have words (B H W, 4, 4, c) inside."""

    def __init__(self, dim: int, word_dim: int, drop_paths: Sequence[float]) -> None:
        super().__init__()
        with_words = 2 if len(drop_paths) > 6 else 1
        self.words = nn.ModuleList(Words(dim, word_dim, i, rate) for i, rate in enumerate(drop_paths[:with_words]))
        self.blocks = nn.ModuleList(Block(dim, i, rate) for i, rate in enumerate(drop_paths))

    def forward(self, words: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        for i, block in enumerate(self.blocks):
            if i < len(self.words):
                words, tokens = self.words[i](words, tokens)
            tokens = block(tokens)
        return words, tokens


class Block(nn.Module):
    """Spatial and channel mix with shortcuts, on (B, H, W, C). `words` in the norms: over all words of a patch."""

    def __init__(self, dim: int, index: int, drop_path: float, *, words: int = 1) -> None:
        super().__init__()
        self.norm, self.channel_norm = LayerNorm(words * dim), LayerNorm(words * dim)
        self.mix, self.channel_mix = ZigzagMix(dim, columns=index % 2 == 1), ChannelMix(dim)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.mix(self._normalised(x, self.norm)))
        return x + self.drop_path(self.channel_mix(self._normalised(x, self.channel_norm)))

    @staticmethod
    def _normalised(x: Tensor, norm: LayerNorm) -> Tensor:
        if norm.normalized_shape[0] == x.shape[3]:
            return norm(x)
        return norm(x.flatten(1)).view_as(x)


class Words(nn.Module):
    """A block on the words of every patch, and what they tell the patch."""

    def __init__(self, dim: int, word_dim: int, index: int, drop_path: float) -> None:
        super().__init__()
        words = WORDS * WORDS
        self.block = Block(word_dim, index, drop_path, words=words)
        self.norm_before, self.norm_after = LayerNorm(words * word_dim), LayerNorm(dim)
        self.project = nn.Linear(words * word_dim, dim, bias=False)

    def forward(self, words: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        words = self.block(words)
        told = self.norm_after(self.project(self.norm_before(words.flatten(1))))
        return words, tokens + told.view_as(tokens)


class ZigzagMix(nn.Module):
    """Two Bi-WKV with the same keys, one on the other's result: (B, H, W, C) -> (B, H, W, C).

    The zigzag is along the rows from the first, or along the `columns` from the last.
    """

    def __init__(self, dim: int, *, columns: bool) -> None:
        super().__init__()
        self.columns = columns
        self.key, self.value, self.receptance, self.output = (nn.Linear(dim, dim, bias=False) for _ in range(4))
        self.decay, self.first = (nn.Parameter(torch.randn(2, dim)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        tokens = height * width
        x = self._zigzag(q_shift(x))
        key, value, gate = self.key(x), self.value(x), torch.sigmoid(self.receptance(x))
        decay, first = self.decay / tokens, self.first / tokens
        value = bi_wkv(decay[0], first[0], key, value)
        grid = (width, height) if self.columns else (height, width)
        key, value = (self._zigzag(z.unflatten(1, grid)) for z in (key, value))
        value = bi_wkv(decay[1], first[1], key, value)
        return self.output(gate * value).unflatten(1, (height, width))

    def _zigzag(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, T, C)."""
        if self.columns:
            return serpentine(x.transpose(1, 2)).flip(1).flatten(1, 2)
        return serpentine(x).flatten(1, 2)


class ChannelMix(nn.Module):
    """Gated feed-forward layer with a squared ReLU on shifted tokens (B, H, W, C), without mixing and norm."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.key = nn.Linear(dim, HIDDEN_RATE * dim, bias=False)
        self.receptance = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(HIDDEN_RATE * dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = q_shift(x)
        return torch.sigmoid(self.receptance(x)) * self.value(torch.relu(self.key(x)).square())


class Merge(nn.Module):
    """A norm and a convolution that halves: (B, H, W, C) -> (B, H / 2, W / 2, C')."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.norm = LayerNorm(in_dim)
        self.conv = nn.Conv2d(in_dim, out_dim, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.norm(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def joined(words: Tensor, tokens: Tensor) -> Tensor:
    """The words of 2 x 2 patches side by side: (B H W, 4, 4, c) -> (B H W / 4, 8, 8, c)."""
    batch, height, width = tokens.shape[:3]
    x = words.reshape(batch, height // 2, 2, width // 2, 2, WORDS, WORDS, -1)
    return x.permute(0, 1, 3, 2, 5, 4, 6, 7).reshape(-1, 2 * WORDS, 2 * WORDS, words.shape[3])


def conv_norm(in_dim: int, out_dim: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_dim, out_dim, 3, stride=stride, padding=1), nn.BatchNorm2d(out_dim), nn.ReLU(inplace=True)
    )


def double_size(dim: int) -> nn.Sequential:
    """A transposed and a plain convolution, each with BatchNorm and GELU: (B, C, H, W) -> (B, C, 2 H, 2 W)."""
    return nn.Sequential(
        nn.ConvTranspose2d(dim, dim, 2, stride=2),
        nn.BatchNorm2d(dim),
        nn.GELU(),
        nn.Conv2d(dim, dim, 3, padding=1),
        nn.BatchNorm2d(dim),
        nn.GELU(),
    )
