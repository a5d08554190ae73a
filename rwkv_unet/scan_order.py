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


def mirrored_and_turned(x: Tensor) -> Tensor:
    """(B, H, W, C) -> (B 4, T, C): rows from the left, rows from the right, columns from the top, from the bottom."""
    turned = x.transpose(1, 2)
    rows, mirrored = x.flatten(1, 2), x.flip(2).flatten(1, 2)
    return torch.stack([rows, mirrored, turned.flatten(1, 2), turned.flip(2).flatten(1, 2)], dim=1).flatten(0, 1)


def put_back(x: Tensor, height: int, width: int) -> Tensor:
    """The mean (B, H, W, C) of (B 4, T, C) in the orders of `mirrored_and_turned`."""
    rows, mirrored, columns, turned = x.unflatten(0, (-1, 4)).unbind(1)
    rows = rows.unflatten(1, (height, width)) + mirrored.unflatten(1, (height, width)).flip(2)
    columns = columns.unflatten(1, (width, height)) + turned.unflatten(1, (width, height)).flip(2)
    return (rows + columns.transpose(1, 2)) / 4
