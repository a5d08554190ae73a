"""A trained model with all that `predict` does around it, as one module that torch.export and ONNX take: raw values at
their own size in, class ids at that size out."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._higher_order_ops.scan import scan

from rwkvctl.data.feed.model_input import IMAGENET_MEAN, IMAGENET_STD
from rwkvctl.models.bundle import BundleInfo
from rwkvctl.models.export_resize import Resize, resize_of, resized

OWN_WINDOW = (math.nan, math.nan)
"""As `window`: the model's own rule."""


class Pipeline(nn.Module):
    """`forward(image)` of photographs, uint8 (N, H, W, 3); `forward(image, window)` of scans, float32 (D, H, W) as the
    scanner gave them.

    window: float32 (2,), what becomes 0 and 1; NaN for the rule of the model's training data. (0, 1) is for values that
        are scaled already.

    Returns `ids`, uint8 (N, H, W), and `logits`, float32 (N, classes, h, w) at the network's own size. One image after
    another goes through the network, so that memory does not grow with their number.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, info: BundleInfo):
        super().__init__()
        self.model = model.requires_grad_(False).eval()
        side = info.image_size
        self.size = (side, side) if isinstance(side, int) else side
        self.is_bytes = info.image_kind == "rgb8"
        self.clip: list[Any] = info.intensity["clip"] if info.intensity else [0.0, 1.0]
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN)[:, None, None])
        self.register_buffer("std", torch.tensor(IMAGENET_STD)[:, None, None])

    def forward(self, image: Tensor, window: Tensor | None = None) -> tuple[Tensor, Tensor]:
        height, width = image.shape[1:3]
        resize = resize_of(height, width, self.size)
        low, high = (None, None) if self.is_bytes else self.bounds(image, window)

        def step(nothing: Tensor, one: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            logits = self.logits(one, resize, low, high)
            native = F.interpolate(logits, size=(height, width), mode="bilinear", align_corners=False)
            best = native[:, 0] > 0 if native.shape[1] == 1 else native.argmax(dim=1)
            return nothing.clone(), (best[0].to(torch.uint8), logits[0])

        _, (ids, logits) = scan(step, torch.zeros(1), image)
        return ids, logits

    def logits(self, image: Tensor, resize: Resize, low: Tensor | None, high: Tensor | None) -> Tensor:
        """float32 (1, classes, *size) of one image."""
        if low is None or high is None:
            values = resized(image.float(), resize, is_bytes=True) / 255
            return self.model(((values - self.mean) / self.std)[None]).float()
        scaled = (torch.minimum(torch.maximum(image, low), high) - low) / (high - low)
        scaled = torch.where(high > low, scaled, 0.0)  # without contrast
        return self.model(resized(scaled[..., None], resize, is_bytes=False)[None]).float()

    def bounds(self, image: Tensor, window: Tensor | None) -> tuple[Tensor, Tensor]:
        """The two numbers that values are clipped to, each float32 ()."""
        own = [bound_of(image, bound) for bound in self.clip]
        assert window is not None
        low, high = (torch.where(window[place].isnan(), own[place], window[place]) for place in (0, 1))
        return low, high


def bound_of(image: Tensor, bound: Any) -> Tensor:
    """As `data.images.intensity` has it: a number, the least value, or the least that is not exceeded by so many
    hundredths of all."""
    if bound == "min":
        return image.min()
    if not isinstance(bound, str):
        return torch.tensor(float(bound))
    share, values = Fraction(bound.removeprefix("p")) / 100, image.flatten()
    rank = (values.shape[0] * share.numerator + share.denominator - 1) // share.denominator  # of the value, from 1 on
    if share == 0:
        return image.min()
    if share > Fraction(1, 2):
        return torch.topk(values, values.shape[0] - rank + 1).values[-1]
    return torch.topk(values, rank, largest=False).values[-1]
