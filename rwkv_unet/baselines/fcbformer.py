"""FCBFormer: a transformer branch for where, a convolutional branch at full size for the outline, joined at the end.

E. Sanderson, B. J. Matuszewski, "FCN-Transformer Feature Fusion for Polyp Segmentation", MIUA 2022,
https://arxiv.org/abs/2208.08352, the transformer branch (TB: LE, SFA), the fully convolutional branch (FCB) and the
prediction head (PH) of its figures.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rwkv_unet.baselines.pvt import DIVISOR, pvt_encoder
from rwkv_unet.images import check_images

GROUPS = 32
WIDTH = 64
FULL_SIZE_DIMS = (32, 32, 64, 64, 128, 128)


class FCBFormer(nn.Module):
    """Segments (B, in_channels, H, W) into logits (B, num_classes, H, W)."""

    divisor = DIVISOR

    def __init__(
        self, num_classes: int, in_channels: int = 3, *, encoder: str = "pvt_v2_b3", drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.encoder = pvt_encoder(encoder, in_channels, drop_path)
        self.fusion = Fusion(self.encoder.feature_info.channels())
        self.full_size = FullSizeBranch(in_channels)
        self.head = nn.Sequential(
            Residual(WIDTH + FULL_SIZE_DIMS[0], WIDTH), Residual(WIDTH, WIDTH), nn.Conv2d(WIDTH, num_classes, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, num_classes, H, W); ValueError for an image of the wrong shape."""
        x = check_images(x, in_channels=self.in_channels, divisor=self.divisor)
        where = F.interpolate(self.fusion(self.encoder(x)), x.shape[2:])
        return self.head(torch.cat([where, self.full_size(x)], 1))


class Fusion(nn.Module):
    """The decoder of the transformer branch: every scale emphasised, then joined from deep to shallow, at stride 4."""

    def __init__(self, dims: list[int]) -> None:
        super().__init__()
        self.emphasis = nn.ModuleList(nn.Sequential(Residual(dim, WIDTH), Residual(WIDTH, WIDTH)) for dim in dims)
        self.joins = nn.ModuleList(
            nn.Sequential(Residual(2 * WIDTH, WIDTH), Residual(WIDTH, WIDTH)) for _ in range(len(dims) - 1)
        )

    def forward(self, features: list[Tensor]) -> Tensor:
        size = features[0].shape[2:]
        *shallow, x = (F.interpolate(emphasis(y), size) for emphasis, y in zip(self.emphasis, features, strict=True))
        for join, y in zip(self.joins, reversed(shallow), strict=True):
            x = join(torch.cat([y, x], 1))
        return x


class FullSizeBranch(nn.Module):
    """A U-Net of residual blocks: (B, in_channels, H, W) -> (B, 32, H, W). Every encoder block's output is a skip."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        dims = FULL_SIZE_DIMS
        self.encoder = nn.ModuleList([nn.Conv2d(in_channels, dims[0], 3, padding=1)])
        skips = [dims[0]]
        for i, (before, dim) in enumerate(zip((dims[0], *dims), dims, strict=False)):
            if i > 0:
                self.encoder.append(nn.Conv2d(before, before, 3, stride=2, padding=1))
                skips.append(before)
            self.encoder.extend([Residual(before, dim), Residual(dim, dim)])
            skips += [dim, dim]
        self.middle = nn.Sequential(Residual(dims[-1], dims[-1]), Residual(dims[-1], dims[-1]))
        self.decoder = nn.ModuleList()
        width = dims[-1]
        for i, dim in reversed(list(enumerate(dims))):
            for last in (False, False, True):
                block = nn.Sequential(Residual(width + skips.pop(), dim))
                if last and i > 0:
                    block.extend([nn.Upsample(scale_factor=2), nn.Conv2d(dim, dim, 3, padding=1)])
                self.decoder.append(block)
                width = dim

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for block in self.encoder:
            x = block(x)
            skips.append(x)
        x = self.middle(x)
        for block in self.decoder:
            x = block(torch.cat([x, skips.pop()], 1))
        return x


class Residual(nn.Module):
    """Twice GroupNorm, SiLU, 3 x 3 convolution, with a shortcut: (B, C, H, W) -> (B, C', H, W)."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.GroupNorm(GROUPS, in_dim),
            nn.SiLU(),
            nn.Conv2d(in_dim, out_dim, 3, padding=1),
            nn.GroupNorm(GROUPS, out_dim),
            nn.SiLU(),
            nn.Conv2d(out_dim, out_dim, 3, padding=1),
        )
        self.shortcut = nn.Identity() if in_dim == out_dim else nn.Conv2d(in_dim, out_dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x) + self.shortcut(x)
