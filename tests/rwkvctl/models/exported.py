"""Networks that are exported in no time, and what a folder would say of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rwkvctl.models.bundle import BundleInfo

RULE = {"clip": ["min", "p99"], "scale": "(x - low) / (high - low)"}


class Small(nn.Module):
    """Logits that depend on a pixel, on its place and on those around it."""

    def __init__(self, channels: int, classes: int, seed: int = 0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.near = nn.Conv2d(channels, 8, 5, padding=2)
            self.last = nn.Conv2d(8, classes, 1)
            nn.init.normal_(self.last.weight, std=3)

    def forward(self, x: Tensor) -> Tensor:
        found = self.last(torch.tanh(self.near(x)))
        return found - found.mean((2, 3), keepdim=True)


def photographs(**fields: Any) -> BundleInfo:
    return BundleInfo(
        model={"name": "rwkv_unet_xt", "num_classes": 3}, classes=["background", "liver", "spleen"], image_size=48,
        image_kind="rgb8", channels=3, kind="segmentation", weights_sha256="f" * 64,
    ).model_copy(update=fields)  # fmt: skip


def scans(**fields: Any) -> BundleInfo:
    return photographs(
        **{"image_kind": "float", "channels": 1, "image_size": (48, 32), "intensity": RULE, "orientation": "SLP"}
        | fields
    )
