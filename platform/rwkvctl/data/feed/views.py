"""Two views of an unlabeled image, of which one is turned: what consistency training compares.

A turn is a number from 0 to 7: its quarter turns (turn % 4) after a flip (turn // 4), all the symmetries of a square.
They can be undone without resampling, so that the predictions are compared pixel by pixel.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from rwkvctl.config.specs.augment import SegmentationAugment
from rwkvctl.data.feed.transforms import Pixels, Size, brightness_contrast, resize_image, to_tensor, to_unit

TURNS = 8


def turn(x: Tensor, number: int) -> Tensor:
    """Flip and turn the last two axes of x (..., H, H)."""
    flipped = x.flip(-1) if number >= 4 else x
    return torch.rot90(flipped, number % 4, (-2, -1))


def turn_back(x: Tensor, number: int) -> Tensor:
    """Undo `turn`."""
    turned = torch.rot90(x, -(number % 4), (-2, -1))
    return turned.flip(-1) if number >= 4 else turned


def two_views(image: Pixels, size: Size, augment: SegmentationAugment, rng: np.random.Generator) -> tuple[Tensor, int]:
    """((2C, H, H) of the two views on top of each other, the turn of the second).

    Each view has its own brightness and contrast, always changed; only the second is turned, and never by nothing.
    """
    small, low, span = to_unit(resize_image(image, size))
    always = augment.model_copy(update={"brightness_contrast": 1.0})
    first, second = (to_tensor(brightness_contrast(small, always, rng)) for _ in range(2))
    number = int(rng.integers(1, TURNS))
    views = [view.permute(1, 2, 0) for view in (first, turn(second, number))]
    if span is not None:
        views = [view * span[:, 0, 0] + torch.as_tensor(low)[..., 0, 0] for view in views]
    return torch.cat(views, dim=-1).permute(2, 0, 1), number  # channels last in memory
