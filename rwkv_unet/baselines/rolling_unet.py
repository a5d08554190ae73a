"""Rolling-UNet: a U-Net whose deepest levels see far along both axes and both diagonals by rolling channels.

Y. Liu, H. Zhu, M. Liu, H. Yu, Z. Chen, J. Gao, "Rolling-Unet: Revitalizing MLP's Ability to Efficiently Extract
Long-Distance Dependencies for Medical Image Segmentation", AAAI 2024, https://doi.org/10.1609/aaai.v38i4.28173,
OR-MLP, DOR-MLP and the Lo2 block of its figures, in three sizes: S, M and L.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rwkv_unet.baselines.tokenized import init_weights
from rwkv_unet.baselines.unet import double_conv
from rwkv_unet.images import check_images


class RollingUNet(nn.Module):
    """Segments (B, in_channels, H, W) into logits (B, num_classes, H, W); `width` is 16 (S), 32 (M) or 64 (L)."""

    divisor = 16

    def __init__(self, num_classes: int, in_channels: int = 3, *, width: int = 32, drop: float = 0.2) -> None:
        super().__init__()
        self.in_channels = in_channels
        one, two, three, four, five = (width * 2**level for level in range(5))
        self.convs = nn.ModuleList([double_conv(in_channels, one), double_conv(one, two), double_conv(two, three)])
        self.pool = nn.MaxPool2d(2)
        self.far = nn.Sequential(FeatureIncentive(three, four), Lo2(four))
        widen, narrow = FeatureIncentive(four, five), FeatureIncentive(five, four)
        self.bottleneck = nn.Sequential(widen, Lo2(five, drop=drop), narrow)
        self.decoder_far = Lo2(four)
        self.decoder_near = nn.Sequential(nn.Conv2d(four, three, 3, padding=1), nn.BatchNorm2d(three), nn.ReLU())
        self.decoder_convs = nn.ModuleList(
            double_conv(i, o, mid_dim=i) for i, o in ((three, two), (two, one), (one, one // 2))
        )
        self.head = nn.Conv2d(one // 2, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, num_classes, H, W); ValueError for an image of the wrong shape."""
        x = check_images(x, in_channels=self.in_channels, divisor=self.divisor)
        skips = []
        for conv in self.convs:
            skips.append(conv(x))
            x = self.pool(skips[-1])
        x = self.far(x)
        x = self.decoder_far(x + upsample(self.bottleneck(self.pool(x))))
        x = self.decoder_near(x)
        for conv, skip in zip(self.decoder_convs, reversed(skips), strict=True):
            x = conv(upsample(x) + skip)
        return self.head(x)


class FeatureIncentive(nn.Module):
    """A 3 x 3 convolution, GELU and LayerNorm: (B, C, H, W) -> (B, C', H, W)."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_dim, out_dim, 3, padding=1)
        self.act = nn.GELU()
        self.norm = nn.LayerNorm(out_dim)
        self.apply(init_weights)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.act(self.conv(x).permute(0, 2, 3, 1))).permute(0, 3, 1, 2)


class Lo2(nn.Module):
    """Lo2: long-distance (rolled) and local (depthwise) features, joined; (B, C, H, W) -> the same."""

    def __init__(self, dim: int, *, drop: float = 0.0) -> None:
        super().__init__()
        self.first = OrthogonalRolling(dim, axes=(1, 2), directions=(1, 1), drop=drop)
        self.second = OrthogonalRolling(dim, axes=(2, 1), directions=(-1, 1), drop=drop)
        self.both_norm = nn.LayerNorm(2 * dim)
        self.both = nn.Linear(2 * dim, dim)
        self.local = nn.Sequential(
            nn.Conv2d(dim, dim, 3, padding=1, groups=dim), nn.Conv2d(dim, dim, 1), nn.ReLU(), nn.BatchNorm2d(dim)
        )
        self.join = nn.Linear(2 * dim, dim)
        self.drop = nn.Dropout(drop)
        self.norm = nn.LayerNorm(dim)
        self.apply(init_weights)

    def forward(self, x: Tensor) -> Tensor:
        local = self.local(x).permute(0, 2, 3, 1)
        x = x.permute(0, 2, 3, 1)  # (B, H, W, C)
        both = torch.cat([self.first(x) + x, self.second(x) + x], -1)
        far = self.drop(self.both(self.both_norm(both))) + x
        return self.norm(self.drop(self.join(torch.cat([far, local], -1)))).permute(0, 3, 1, 2)


class OrthogonalRolling(nn.Module):
    """OR-MLP: roll along one axis, linear, GELU, roll along the other, linear; on (B, H, W, C)."""

    def __init__(self, dim: int, *, axes: tuple[int, int], directions: tuple[int, int], drop: float) -> None:
        super().__init__()
        self.axes, self.directions = axes, directions
        self.fc1, self.fc2 = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.act = nn.GELU()
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self.act(self.fc1(roll_channels(x, self.axes[0], self.directions[0]))))
        return self.drop(self.fc2(roll_channels(x, self.axes[1], self.directions[1])))


def roll_channels(x: Tensor, axis: int, direction: int) -> Tensor:
    """Roll channel c of (B, H, W, C) by c positions along H (1) or W (2), in a circle."""
    size, channels = x.shape[axis], x.shape[3]
    position = torch.arange(size, device=x.device)[:, None]
    source = (position - direction * torch.arange(channels, device=x.device)) % size  # (size, C)
    source = source[None, :, None] if axis == 1 else source[None, None]
    return x.gather(axis, source.expand_as(x))


def upsample(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear")
