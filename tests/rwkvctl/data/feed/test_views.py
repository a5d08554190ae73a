"""Two views of an unlabeled image, and that their predictions can be compared pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rwkvctl.config.specs.augment import SegmentationAugment
from rwkvctl.data.feed.views import TURNS, turn, turn_back, two_views
from rwkvctl.training.losses import consistency_loss


def test_turns_are_the_eight_symmetries_and_can_be_undone():
    x = torch.arange(2 * 5 * 5).reshape(2, 5, 5)
    turned = [turn(x, number) for number in range(TURNS)]
    assert torch.equal(turned[0], x)
    assert len({tuple(one.flatten().tolist()) for one in turned}) == TURNS
    assert all(torch.equal(turn_back(one, number), x) for number, one in enumerate(turned))


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_the_second_view_is_the_first_turned_and_recoloured(dtype: type):
    ramp = np.linspace(0.2, 0.7, 48 * 48).reshape(48, 48)
    image = (np.stack([255 * ramp] * 3, axis=-1) if dtype is np.uint8 else ramp).astype(dtype)
    channels = 3 if dtype is np.uint8 else 1
    seen = set()
    for seed in range(12):
        views, number = two_views(image, (32, 32), SegmentationAugment(), np.random.default_rng(seed))
        assert views.shape == (2 * channels, 32, 32)
        first, second = views.float().split(channels)
        back = turn_back(second, number)
        assert not torch.equal(first, back), "each has its own colours"
        assert torch.corrcoef(torch.stack([first.flatten(), back.flatten()]))[0, 1] > 0.99
        seen.add(number)
    assert 0 not in seen
    assert len(seen) > 3


@pytest.mark.parametrize("classes", [1, 3])
def test_consistency_is_zero_for_a_prediction_that_turns_along(classes: int):
    first = torch.randn(4, classes, 6, 6, requires_grad=True)
    turns = torch.tensor([1, 4, 6, 7])
    second = torch.stack([turn(x, int(number)) for x, number in zip(first, turns, strict=True)])
    assert consistency_loss(torch.cat([first, second]), turns).item() == pytest.approx(0, abs=1e-12)
    other = torch.cat([first, second.detach() + torch.randn_like(second)])
    loss = consistency_loss(other, turns)
    p, q = (x.sigmoid() if classes == 1 else x.softmax(1) for x in other.detach().chunk(2))
    expected = np.mean([(a - turn_back(b, int(t))).square().mean() for a, b, t in zip(p, q, turns, strict=True)])
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    (gradient,) = torch.autograd.grad(loss, first)
    assert gradient.abs().sum() > 0
