"""Equation 10 of the paper, alpha * CE + beta * Dice, and consistency between two views of an unlabeled image."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from rwkvctl.data.feed.views import turn_back

SMOOTH = 1e-5  # In the authors' code: a class that is neither predicted nor there has a Dice loss of 0.


def segmentation_loss(
    logits: Tensor,
    target: Tensor,
    *,
    alpha: float,
    beta: float,
    ignore_index: int | None = 255,
    total: Callable[[Tensor], Tensor] = lambda sums: sums,
) -> Tensor:
    """alpha * cross entropy + beta * Dice of the global batch, a scalar.

    Both are quotients of sums over pixels. Averaging them over workers would weigh a worker with few valid pixels, or
    with little of a class, like any other; so the sums are added up over all workers before they are divided.

    Args:
        logits: (B, C, H, W) for C classes, or (B, 1, H, W) for one foreground class against the background; of volumes
            (B, C, D, H, W).
        target: (B, [D,] H, W) class ids, any integer dtype; pixels of `ignore_index` count in neither term.
        total: adds up a vector over all workers, differentiably; by default there is one.
    """
    valid = torch.ones_like(target, dtype=torch.bool) if ignore_index is None else target != ignore_index
    target = torch.where(valid, target, 0).long()
    logits = logits if logits.dtype == torch.float64 else logits.float()
    if logits.shape[1] == 1:
        truth = target.unsqueeze(1).to(logits.dtype)
        pixelwise = F.binary_cross_entropy_with_logits(logits, truth, reduction="none").squeeze(1)
        probabilities = logits.sigmoid()
    else:
        classes = torch.arange(logits.shape[1], device=logits.device).view(1, -1, *[1] * (logits.ndim - 2))
        truth = (target.unsqueeze(1) == classes).to(logits.dtype)  # one_hot reads its input on the host
        pixelwise = F.cross_entropy(logits, target, reduction="none")
        probabilities = logits.softmax(dim=1)
    mask = valid.unsqueeze(1)
    overlap, size = dice_sums(probabilities * mask, truth * mask)
    of_pixels = torch.stack([(pixelwise * valid).sum(), valid.sum().to(logits.dtype)])
    sums = total(torch.cat([of_pixels, overlap, size]))
    (cross_entropy, pixels), (overlap, size) = sums[:2], sums[2:].chunk(2)
    return alpha * cross_entropy / pixels.clamp(min=1) + beta * dice_loss(overlap, size)


def dice_sums(probabilities: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Per class (C,), over all pixels of (B, C, [D,] H, W): the sum of p * y, and the sum of p^2 + y^2."""
    pixels = (0, *range(2, truth.ndim))
    return (probabilities * truth).sum(pixels), probabilities.square().sum(pixels) + truth.square().sum(pixels)


def dice_loss(overlap: Tensor, size: Tensor) -> Tensor:
    """1 - DSC with squared terms per class, then the mean of the classes, background counted; sums are `dice_sums`."""
    return (1 - (2 * overlap + SMOOTH) / (size + SMOOTH)).mean()


def consistency_loss(logits: Tensor, turns: Tensor, total: Callable[[Tensor], Tensor] = lambda sums: sums) -> Tensor:
    """Mean squared error between the probabilities of two views of the global batch, the second turned back; a scalar.

    Args:
        logits: (2B, C, H, H), first the views as the images lie, then those that were turned.
        turns: (B,) how the second views were turned, see `rwkvctl.data.feed.views`.
        total: as for `segmentation_loss`.
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    probabilities = logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(dim=1)
    first, second = probabilities.chunk(2)
    back = torch.stack([turn_back(x, int(turn)) for x, turn in zip(second, turns.tolist(), strict=True)])
    squares = (first - back).square().sum()
    error, values = total(torch.stack([squares, squares.new_tensor(first.numel())]))
    return error / values
