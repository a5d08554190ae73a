"""H-vmunet: a small U-Net of high-order selective scans, whose gates are scanned in turn, and an attention bridge.

R. Wu, Y. Liu, P. Liang, Q. Chang, "H-vmunet: High-order Vision Mamba UNet for Medical Image Segmentation",
Neurocomputing 624, 2025, https://arxiv.org/abs/2403.13642, Figures 1 to 3. The bridge is that of MALUNet
(https://arxiv.org/abs/2211.01784, SAB and CAB).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn

from rwkv_unet.baselines.options import check_dims
from rwkv_unet.baselines.tokenized import init_weights
from rwkv_unet.baselines.vss import SS2D, drop_paths
from rwkv_unet.images import check_images
from rwkv_unet.layers import LayerNorm2d
from rwkv_unet.rwkv_unet_enc import not_weights

DIMS = (8, 16, 32, 64, 128, 256)
ORDERS = (2, 3, 4, 5)  # of the blocks of levels 3 to 6
GATE_SCALE = 1 / 3
LAYER_SCALE = 1e-6


class HVMUNet(nn.Module):
    """Segments (B, in_channels, H, W) into logits (B, num_classes, H, W).

    Args:
        dims: widths of the six levels.
        orders: products one after another in the blocks of the levels 3 to 6.
        depth: blocks a level.
    """

    divisor = 32

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 3,
        *,
        dims: Sequence[int] = DIMS,
        orders: Sequence[int] = ORDERS,
        depth: int = 2,
        drop_path: float = 0.4,
    ) -> None:
        super().__init__()
        _check(dims, orders, depth)
        self.in_channels = in_channels
        rates = drop_paths(drop_path, [depth] * len(orders))
        encode = list(zip((in_channels, *dims), dims, strict=False))
        self.encoder = nn.ModuleList(conv(i, o) for i, o in encode[:2])
        self.encoder.extend(
            level(i, o, order, rate) for (i, o), order, rate in zip(encode[2:], orders, rates, strict=True)
        )
        self.norms = nn.ModuleList(nn.GroupNorm(4, dim) for dim in dims[:-1])
        self.bridge = AttentionBridge(dims[:-1])
        rates[-1] = rates[-1][:1] * depth  # all blocks of the deepest level have the rate of its first
        decode = list(zip(dims[::-1], dims[-2::-1], strict=False))
        self.decoder = nn.ModuleList(
            level(i, o, order, rate) for (i, o), order, rate in zip(decode, orders[::-1], rates[::-1], strict=False)
        )
        self.decoder.append(conv(*decode[-1]))
        self.decoder_norms = nn.ModuleList(nn.GroupNorm(4, dim) for dim in dims[-2::-1])
        self.head = nn.Conv2d(dims[0], num_classes, 1)
        self.apply(init)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, num_classes, H, W); ValueError for an image of the wrong shape."""
        x = check_images(x, in_channels=self.in_channels, divisor=self.divisor)
        *levels, deepest = self.encoder
        skips: list[Tensor] = []
        for encode, norm in zip(levels, self.norms, strict=True):
            skips.append(F.gelu(F.max_pool2d(norm(encode(skips[-1] if skips else x)), 2)))
        x = F.gelu(deepest(skips[-1]))
        skips = self.bridge(skips)
        for i, (decode, norm) in enumerate(zip(self.decoder, self.decoder_norms, strict=True)):
            x = norm(decode(x))
            x = F.gelu(twice(x) if i else x) + skips.pop()
        return twice(self.head(x))

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that are no weights (timm's optimizer factory asks)."""
        return not_weights(self)


def conv(in_dim: int, out_dim: int) -> nn.Conv2d:
    return nn.Conv2d(in_dim, out_dim, 3, padding=1)


def level(in_dim: int, out_dim: int, order: int, drop_paths: Sequence[float]) -> nn.Sequential:
    return nn.Sequential(*(HighOrderBlock(in_dim, order, rate) for rate in drop_paths), conv(in_dim, out_dim))


def twice(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=True)


class HighOrderBlock(nn.Module):
    """H-SS2D and a perceptron, each normalised before, scaled by channel after: (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, dim: int, order: int, drop_path: float) -> None:
        super().__init__()
        self.norm, self.mix = LayerNorm2d(dim), HighOrderSS2D(dim, order)
        self.mlp_norm = LayerNorm2d(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        self.scale = nn.Parameter(torch.full((dim,), LAYER_SCALE))
        self.mlp_scale = nn.Parameter(torch.full((dim,), LAYER_SCALE))
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.scale[:, None, None] * self.mix(self.norm(x)))
        tokens = self.mlp_norm(x).permute(0, 2, 3, 1)
        return x + self.drop_path((self.mlp_scale * self.mlp(tokens)).permute(0, 3, 1, 2))


class HighOrderSS2D(nn.Module):
    """Products with local gates, from the narrowest to the widest, each scanned: (B, C, H, W) -> (B, C, H, W).

    The widths are C / 2^(order - 1), ..., C / 2, C.
    """

    def __init__(self, dim: int, order: int) -> None:
        super().__init__()
        self.dims = [dim // 2**i for i in reversed(range(order))]
        self.project_in = nn.Conv2d(dim, 2 * dim, 1)
        self.gates = LocalSS2D(sum(self.dims))
        self.widen = nn.ModuleList(nn.Conv2d(i, o, 1) for i, o in zip(self.dims, self.dims[1:], strict=False))
        self.scans = nn.ModuleList(SS2D(dim) for dim in self.dims)
        self.project_out = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        x, gates = self.project_in(x).split([self.dims[0], sum(self.dims)], dim=1)
        for i, gate in enumerate((self.gates(gates) * GATE_SCALE).split(self.dims, dim=1)):
            x = (self.widen[i - 1](x) if i else x) * gate
            x = channels_first(self.scans[i], x)
        return self.project_out(x)


class LocalSS2D(nn.Module):
    """Half of the channels convolved, half scanned, and the two interleaved: (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        half = dim // 2
        self.norm_before, self.norm_after = LayerNorm2d(dim), LayerNorm2d(dim)
        self.local = nn.Conv2d(half, half, 3, padding=1, groups=half, bias=False)
        self.scan = SS2D(half)

    def forward(self, x: Tensor) -> Tensor:
        local, far = self.norm_before(x).chunk(2, dim=1)
        both = torch.stack([self.local(local), channels_first(self.scan, far)], dim=2)
        return self.norm_after(both.flatten(1, 2))


def channels_first(scan: nn.Module, x: Tensor) -> Tensor:
    return scan(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class AttentionBridge(nn.Module):
    """Attention over places, the same convolution for every skip, then over channels, from the means of all skips."""

    def __init__(self, dims: Sequence[int]) -> None:
        super().__init__()
        self.dims = list(dims)
        self.places = nn.Conv2d(2, 1, 7, padding=9, dilation=3)
        self.means = nn.Conv1d(1, 1, 3, padding=1, bias=False)
        self.channels = nn.ModuleList(nn.Linear(sum(dims), dim) for dim in dims)

    def forward(self, skips: Sequence[Tensor]) -> list[Tensor]:
        placed = [self._attend_places(x) * x for x in skips]
        added = [x + y for x, y in zip(skips, placed, strict=True)]
        means = self.means(torch.cat([x.mean((2, 3)) for x in added], 1)[:, None])[:, 0]  # (B, sum(dims))
        return [
            torch.sigmoid(attend(means))[:, :, None, None] * x + y
            for attend, x, y in zip(self.channels, added, placed, strict=True)
        ]

    def _attend_places(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.places(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)))


def init(module: nn.Module) -> None:
    """As the other small networks; a convolution along the channels by its own fan-out."""
    init_weights(module)
    if isinstance(module, nn.Conv1d):
        nn.init.normal_(module.weight, std=math.sqrt(2 / (module.kernel_size[0] * module.out_channels)))


def _check(dims: Sequence[int], orders: Sequence[int], depth: int) -> None:
    check_dims(dims, levels=len(ORDERS) + 2)
    if (
        not isinstance(orders, Sequence)
        or len(orders) != len(ORDERS)
        or not all(order in range(2, 9) for order in orders)
    ):
        raise ValueError(f"model.orders must be four numbers from 2 to 8, not {orders!r}")
    if not isinstance(depth, int) or depth < 1:
        raise ValueError(f"model.depth must be a positive integer, not {depth!r}")
    # Group norms have four groups; halves of all widths of a block, the narrowest of which is 2^(1 - order), are whole.
    for i, (dim, order) in enumerate(zip(dims, (2, *orders, orders[-1]), strict=True)):
        if dim % 2**order:
            raise ValueError(f"model.dims: level {i + 1} must be divisible by {2**order}, not {dim}")
