"""The losses of the authors' training loops, from their formulas."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rwkvctl.training.deep_supervision import supervised
from rwkvctl.training.losses import segmentation_loss

ALPHA, BETA = 0.3, 0.7


def powerset(items: list[int]) -> list[list[int]]:
    """All subsets, by taking or leaving the first."""
    if not items:
        return [[]]
    rest = powerset(items[1:])
    return [[items[0], *subset] for subset in rest] + rest


def loss_of(logits: Tensor, target: Tensor) -> Tensor:
    """0.3 CE + 0.7 Dice, whose terms are 1 - (2 sum p y + s) / (sum p^2 + sum y^2 + s), the mean of the classes."""
    p, y = logits.softmax(1), F.one_hot(target, logits.shape[1]).movedim(-1, 1)
    dice = 0.0
    for c in range(logits.shape[1]):
        overlap, size = (p[:, c] * y[:, c]).sum(), (p[:, c] ** 2).sum() + (y[:, c] ** 2).sum()
        dice += 1 - (2 * overlap + 1e-5) / (size + 1e-5)
    return 0.3 * F.cross_entropy(logits, target) + 0.7 * dice / logits.shape[1]


@pytest.fixture
def maps() -> list[Tensor]:
    generator = torch.Generator().manual_seed(4)
    return [torch.randn(2, 3, 6, 5, dtype=torch.float64, generator=generator) for _ in range(4)]


@pytest.mark.parametrize("how", ["none", "sum", "mutation"])
def test_losses_are_the_authors(maps: list[Tensor], how: Any):
    target = torch.randint(0, 3, (2, 6, 5), generator=torch.Generator().manual_seed(5))
    p1, p2, p3, p4 = maps
    if how == "none":
        maps = [p4]
        expected = loss_of(p4, target)
    elif how == "sum":  # CASCADE: loss_p1 + loss_p2 + loss_p3 + loss_p4
        expected = loss_of(p1, target) + loss_of(p2, target) + loss_of(p3, target) + loss_of(p4, target)
    else:  # EMCAD: for every subset that is not empty, iout = the sum of its outputs, loss += loss(iout)
        subsets = [subset for subset in powerset([0, 1, 2, 3]) if subset]
        assert len(subsets) == 15
        expected = sum(loss_of(sum(maps[i] for i in subset), target) for subset in subsets)  # type: ignore[arg-type]
    found = sum(segmentation_loss(x, target, alpha=ALPHA, beta=BETA) for x in supervised(maps, how))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_logits_of_half_precision_are_widened_before_they_are_added_up():
    """In bf16, 256 + 1 is 256."""
    maps = [torch.full((1, 1, 2, 2), value, dtype=torch.bfloat16) for value in (256.0, 1.0)]
    assert [float(x.max()) for x in supervised(maps, "mutation")] == [256, 1, 257]
