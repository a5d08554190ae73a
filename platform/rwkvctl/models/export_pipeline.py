"""A trained model with all that `predict` does around it, as one module that torch.export and ONNX take: raw values at
their own size in, class ids at that size out."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._higher_order_ops.scan import scan

from rwkvctl.data.feed.model_input import IMAGENET_MEAN, IMAGENET_STD
from rwkvctl.data.images import normalise
from rwkvctl.models import onnx_model
from rwkvctl.models.bundle import BundleInfo
from rwkvctl.models.export_resize import Resize, resize_of, resized
from rwkvctl.models.export_rules import bound_of, own_numbers

OWN_WINDOW = (math.nan, math.nan)
"""As `window`: the model's own rule."""


class Pipeline(nn.Module):
    """`forward(image)` of photographs, uint8 (N, H, W, 3); `forward(image, window)` of scans, float32 (D, H, W) as the
    scanner gave them.

    window: float32 (2,), what becomes 0 and 1; NaN for the rule of the model's training data. (0, 1) is for values that
        are scaled already. Of several channels, float32 (D, H, W, C), or another rule than a range, it is `scaling`,
        float32 (C, 4): (clip(x, low, high) - shift) / divisor; (-inf, inf, 0, 1) leaves values as they are.

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
        self.rules = normalise.rules_of(info.intensity) or []
        self.one_range = onnx_model.takes_window(info)
        self.several = info.channels > 1
        self.clip: list[Any] = list(normalise.only_range(info.intensity) or (0.0, 1.0))
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN)[:, None, None])
        self.register_buffer("std", torch.tensor(IMAGENET_STD)[:, None, None])

    def forward(self, image: Tensor, window: Tensor | None = None) -> tuple[Tensor, Tensor]:
        height, width = image.shape[1:3]
        resize = resize_of(height, width, self.size)
        numbers = None if self.is_bytes else self.numbers(image, window)

        def step(nothing: Tensor, one: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            logits = self.logits(one, resize, numbers)
            native = F.interpolate(logits, size=(height, width), mode="bilinear", align_corners=False)
            best = native[:, 0] > 0 if native.shape[1] == 1 else native.argmax(dim=1)
            return nothing.clone(), (best[0].to(torch.uint8), logits[0])

        _, (ids, logits) = scan(step, torch.zeros(1), image)
        return ids, logits

    def logits(self, image: Tensor, resize: Resize, numbers: Tensor | tuple[Tensor, Tensor] | None) -> Tensor:
        """float32 (1, classes, *size) of one image."""
        if numbers is None:
            values = resized(image.float(), resize, is_bytes=True) / 255
            return self.model(((values - self.mean) / self.std)[None]).float()
        if isinstance(numbers, Tensor):
            low, high, shift, divisor = numbers.unbind(dim=1)
            values = image if self.several else image[..., None]
            normal = (torch.minimum(torch.maximum(values, low), high) - shift) / divisor
            normal = torch.where(divisor > 0, normal, 0.0)  # without contrast
            return self.model(resized(normal, resize, is_bytes=False)[None]).float()
        low, high = numbers
        scaled = (torch.minimum(torch.maximum(image, low), high) - low) / (high - low)
        scaled = torch.where(high > low, scaled, 0.0)  # without contrast
        return self.model(resized(scaled[..., None], resize, is_bytes=False)[None]).float()

    def numbers(self, image: Tensor, window: Tensor | None) -> Tensor | tuple[Tensor, Tensor]:
        """The two numbers that values are clipped to, each float32 (); or (C, 4), see above."""
        if not self.one_range:
            assert window is not None
            channels = image if self.several else image[..., None]
            return torch.where(window.isnan(), own_numbers(channels, self.rules), window)
        own = [bound_of(image, bound) for bound in self.clip]
        assert window is not None
        low, high = (torch.where(window[place].isnan(), own[place], window[place]) for place in (0, 1))
        return low, high
