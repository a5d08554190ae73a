"""Orders in which the tokens of an image are put in a row."""

from __future__ import annotations

import torch
from torch import Tensor


def serpentine(x: Tensor) -> Tensor:
    """Every other row of (B, H, W, C) from right to left, so that neighbours in the row of all tokens touch.

    Done twice it is undone.
    """
    odd = torch.arange(x.shape[1], device=x.device) % 2 == 1
    return torch.where(odd[:, None, None], x.flip(2), x)
