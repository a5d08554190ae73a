"""MT-UNet: a U-Net whose deep levels are mixed transformers: local, Gaussian-weighted global and external attention.

H. Wang et al., "Mixed Transformer U-Net for Medical Image Segmentation", ICASSP 2022, https://arxiv.org/abs/2111.04734,
its mixed transformer module (MTM): local-global Gaussian-weighted self-attention (LGG-SA) and external attention (EA).
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rwkv_unet.images import check_images
from rwkv_unet.layers import resize

HEADS = 8
WINDOW = 4
GRID = 28
"""Side of the grid of the position embeddings, that of images of 224; resized for others."""
EXTERNAL_HEADS, EXTERNAL_WIDTH = 32, 64
EXPANSION = 4
NORM_EPS = 1e-6


class MTUNet(nn.Module):
    """Segments (B, in_channels, H, W) into logits (B, num_classes, H, W); `width` is the first level's, 8 n."""

    divisor = 32

    def __init__(self, num_classes: int, in_channels: int = 3, *, width: int = 64) -> None:
        super().__init__()
        if not isinstance(width, int) or width < 8 or width % 8:
            raise ValueError(f"model.width must be a multiple of 8, not {width!r}")
        conv_dims, dims = (width, 2 * width, 4 * width), (4 * width, 8 * width, 16 * width)
        self.in_channels = in_channels
        self.convs = nn.ModuleList(Residual(i, o) for i, o in pairwise((in_channels, *conv_dims)))
        self.pool = nn.MaxPool2d(2)
        self.embedding = nn.Sequential(*conv_norm(conv_dims[-1], dims[0], 1), nn.ReLU())
        self.positions = nn.Parameter(torch.zeros(1, dims[0], GRID, GRID))
        self.encoder = nn.ModuleList(mixed(dim) for dim in dims)
        self.downsamplings = nn.ModuleList(
            nn.Sequential(nn.Conv2d(i, o, 2, stride=2, bias=False), nn.BatchNorm2d(o), nn.ReLU())
            for i, o in pairwise(dims)
        )
        shallow, middle = dims[:2]
        self.upsamplings = nn.ModuleList(nn.ConvTranspose2d(i, o, 2, stride=2) for i, o in pairwise(reversed(dims)))
        self.joins = nn.ModuleList([nn.Conv2d(2 * middle, middle, 1), nn.Identity()])
        self.decoder = nn.ModuleList([mixed(middle), mixed(2 * shallow)])
        ups = pairwise((2 * shallow, *reversed(conv_dims)))
        self.conv_upsamplings = nn.ModuleList(nn.ConvTranspose2d(i, o, 2, stride=2) for i, o in ups)
        self.conv_decoder = nn.ModuleList(Residual(2 * dim, dim) for dim in reversed(conv_dims))
        self.head = nn.Conv2d(conv_dims[0], num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, num_classes, H, W); ValueError for an image of the wrong shape."""
        x = check_images(x, in_channels=self.in_channels, divisor=self.divisor)
        conv_skips, skips = [], []
        for conv in self.convs:
            conv_skips.append(conv(x))
            x = self.pool(conv_skips[-1])
        x = self.embedding(x)
        x = x + resize(self.positions, x.shape[2:])
        for level, downsample in zip(self.encoder, self.downsamplings, strict=False):
            skips.append(on_tokens(level, x))
            x = downsample(skips[-1])
        x = on_tokens(self.encoder[-1], x)
        for upsample, join, level in zip(self.upsamplings, self.joins, self.decoder, strict=True):
            x = on_tokens(level, join(torch.cat([upsample(x), skips.pop()], 1)))
        for upsample, conv in zip(self.conv_upsamplings, self.conv_decoder, strict=True):
            x = conv(torch.cat([conv_skips.pop(), upsample(x)], 1))
        return self.head(x)


def on_tokens(level: nn.Module, x: Tensor) -> Tensor:
    """A level of (B, H, W, C) on a map (B, C, H, W)."""
    return level(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def mixed(dim: int) -> nn.Sequential:
    return nn.Sequential(MixedTransformer(dim), MixedTransformer(dim))


class Residual(nn.Module):
    """Two 3 x 3 convolutions, and one of 1 x 1 that is added to what they give."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(*conv_norm(in_dim, out_dim, 3), nn.ReLU(), *conv_norm(out_dim, out_dim, 3))
        self.inner = nn.Sequential(nn.Conv2d(out_dim, out_dim, 1), nn.BatchNorm2d(out_dim))
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.convs(x)
        return self.act(x + self.inner(x))


def conv_norm(in_dim: int, out_dim: int, kernel: int) -> list[nn.Module]:
    return [nn.Conv2d(in_dim, out_dim, kernel, padding=kernel // 2, bias=False), nn.BatchNorm2d(out_dim)]


class MixedTransformer(nn.Module):
    """MTM: LGG-SA and EA, each after a norm and with a shortcut; (B, H, W, C) -> (B, H, W, C)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS), nn.LayerNorm(dim, eps=NORM_EPS)
        self.local_global = LocalGlobal(dim)
        self.external = ExternalAttention(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.local_global(self.norm1(x))
        return x + self.external(self.norm2(x))


class LocalGlobal(nn.Module):
    """LGG-SA: attention in windows, then between windows, each of which is one token along its row and column."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.weights = nn.Linear(dim, WINDOW**2)
        self.gaussian = GaussianAxial(dim)
        self.upsample = nn.UpsamplingBilinear2d(scale_factor=WINDOW)
        self.join = nn.Conv2d(2 * dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        windows = self._attend(into_windows(filled(x)))  # (B, rows, columns, WINDOW^2, C)
        weights = F.softmax(self.weights(windows.mean(3)), dim=-1)
        tokens = self.gaussian((windows * weights[..., None]).sum(3))
        near = windows.unflatten(3, (WINDOW, WINDOW)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
        far = self.upsample(tokens.permute(0, 3, 1, 2))
        y = self.join(torch.cat([far, near.permute(0, 3, 1, 2)], 1))
        return y.permute(0, 2, 3, 1)[:, :height, :width]

    def _attend(self, x: Tensor) -> Tensor:
        each = self.qkv(x.flatten(0, 2)).chunk(3, -1)  # ONNX has attention over (batch, heads, tokens, channels) alone
        q, k, v = (y.unflatten(-1, (HEADS, -1)).transpose(1, 2) for y in each)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)).view_as(x)


def filled(x: Tensor) -> Tensor:
    """(B, H, W, C) with zeros below and at the right up to whole windows; in the corner, as the authors have it, a copy
    of the last rows and columns."""
    height, width = x.shape[1:3]
    below, right = -height % WINDOW, -width % WINDOW
    if not below and not right:
        return x
    corner = x[:, max(height - below, 0) :, max(width - right, 0) :] if below and right else x[:, :0, :0]
    under = F.pad(corner, (0, 0, width + right - corner.shape[2], 0, below - corner.shape[1], 0))
    return torch.cat([F.pad(x, (0, 0, 0, right)), under], 1) if below else F.pad(x, (0, 0, 0, right))


def into_windows(x: Tensor) -> Tensor:
    """(B, H, W, C) -> (B, H / WINDOW, W / WINDOW, WINDOW^2, C)."""
    return x.unflatten(2, (-1, WINDOW)).unflatten(1, (-1, WINDOW)).transpose(2, 3).flatten(3, 4)


class GaussianAxial(nn.Module):
    """Attention of (B, H, W, C) along both axes, that falls with the square of the distance.

    The authors' constant beside the distance is left out: a softmax is the same with it.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(dim, 3 * dim)
        self.decay = nn.Parameter(torch.randn(1).abs())

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        along_rows = self._attend(q, k, v)
        along_columns = self._attend(*(y.transpose(1, 2) for y in (q, k, v))).transpose(1, 2)
        return along_rows + along_columns

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Along the second axis of (B, N, M, C)."""
        place = torch.arange(q.shape[2], device=q.device)
        bias = -self.decay * (place[:, None] - place[None]) ** 2
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype), scale=1.0)


class ExternalAttention(nn.Module):
    """EA: keys and values that are weights, the same for all images; the attention is normalised over the tokens."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        wide = EXPANSION * dim
        self.query, self.proj = nn.Linear(dim, wide), nn.Linear(wide, dim)
        self.keys = nn.Linear(wide // EXTERNAL_HEADS, EXTERNAL_WIDTH)
        self.values = nn.Linear(EXTERNAL_WIDTH, wide // EXTERNAL_HEADS)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.query(x.flatten(1, 2)).unflatten(-1, (EXTERNAL_HEADS, -1)).transpose(1, 2)  # (B, heads, N, C')
        weights = self.keys(heads).softmax(2)
        weights = weights / (1e-9 + weights.sum(-1, keepdim=True))
        return self.proj(self.values(weights).transpose(1, 2).flatten(2)).view_as(x)
