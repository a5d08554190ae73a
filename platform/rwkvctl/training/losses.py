"""Equation 10 of the paper, alpha * CE + beta * Dice, and consistency between two views of an unlabeled image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from rwkvctl.data.feed.views import turn_back

SMOOTH = 1e-5  # In the authors' code: a class that is neither predicted nor there has a Dice loss of 0.


def segmentation_loss(
    logits: Tensor, target: Tensor, *, alpha: float, beta: float, ignore_index: int | None = 255
) -> Tensor:
    """alpha * cross entropy + beta * Dice, a scalar.

    Args:
        logits: (B, C, H, W) for C classes, or (B, 1, H, W) for one foreground class against the background.
        target: (B, H, W) class ids, any integer dtype; pixels of `ignore_index` count in neither term.
    """
    valid = torch.ones_like(target, dtype=torch.bool) if ignore_index is None else target != ignore_index
    target = torch.where(valid, target, 0).long()
    logits = logits.float()
    if logits.shape[1] == 1:
        truth = target.unsqueeze(1).to(logits.dtype)
        pixelwise = F.binary_cross_entropy_with_logits(logits, truth, reduction="none").squeeze(1)
        probabilities = logits.sigmoid()
    else:
        truth = F.one_hot(target, logits.shape[1]).movedim(-1, 1).to(logits.dtype)
        pixelwise = F.cross_entropy(logits, target, reduction="none")
        probabilities = logits.softmax(dim=1)
    cross_entropy = (pixelwise * valid).sum() / valid.sum().clamp(min=1)
    mask = valid.unsqueeze(1)
    return alpha * cross_entropy + beta * dice_loss(probabilities * mask, truth * mask)


def dice_loss(probabilities: Tensor, truth: Tensor) -> Tensor:
    """1 - DSC with squared terms, per class over the whole batch, then the mean of the classes, background counted.

    Args:
        probabilities, truth: (B, C, H, W). Here and not from MONAI, whose import takes every process eight seconds.
    """
    pixels = (0, 2, 3)
    overlap = (probabilities * truth).sum(pixels)
    total = probabilities.square().sum(pixels) + truth.square().sum(pixels)
    return (1 - (2 * overlap + SMOOTH) / (total + SMOOTH)).mean()


def consistency_loss(logits: Tensor, turns: Tensor) -> Tensor:
    """Mean squared error between the probabilities of two views, the second turned back; a scalar.

    Args:
        logits: (2B, C, H, H), first the views as the images lie, then those that were turned.
        turns: (B,) how the second views were turned, see `rwkvctl.data.feed.views`.
    """
    logits = logits.float()
    probabilities = logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(dim=1)
    first, second = probabilities.chunk(2)
    back = torch.stack([turn_back(x, int(turn)) for x, turn in zip(second, turns.tolist(), strict=True)])
    return F.mse_loss(first, back)
