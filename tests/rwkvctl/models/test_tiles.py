"""Large images through a window: MONAI's inferer, told our way."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from rwkvctl.models import tiles
from rwkvctl.models.ensemble import Member, Options, Segmenter

from .test_ensemble import OneLogit, info


class Seen(nn.Module):
    """The brighter half of what it sees, by one logit a pixel; keeps the shapes of what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.tensor(0.5))
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.shapes.append(tuple(x.shape))
        return 10 * (x.mean(dim=1, keepdim=True) - self.level)


def checkerboard(height: int, width: int) -> np.ndarray:
    """Single pixels, which do not outlive a resize."""
    return (np.indices((height, width)).sum(axis=0) % 2).astype(np.float32)


@pytest.mark.parametrize("shape", [(37, 50), (16, 40), (9, 40), (40, 7)])
def test_an_image_keeps_its_own_pixels_whatever_its_size(shape: tuple[int, int]):
    model, image = Seen().eval(), checkerboard(*shape)
    one = Member(model, info(size=16, classes=1))
    found = Segmenter([one], Options(tile=0.5, probabilities=True)).segment(image)
    np.testing.assert_array_equal(found.mask, image)
    np.testing.assert_allclose(found.probabilities.sum(axis=0), 1, atol=2e-3)
    assert {each[-2:] for each in model.shapes} == {(16, 16)}, "windows of the training size"
    assert (Segmenter([one]).segment(image).mask != image).any(), "resized, they are lost"


def test_an_image_of_the_training_size_is_resized_as_ever_and_seen_at_once():
    model, image = Seen().eval(), checkerboard(16, 12)
    one = Member(model, info(size=16, classes=1))
    expected = Segmenter([one], Options(probabilities=True)).segment(image)
    model.shapes.clear()
    found = Segmenter([one], Options(tile=0.5, probabilities=True)).segment(image)
    np.testing.assert_array_equal(found.probabilities, expected.probabilities)
    assert len(model.shapes) == 1


def test_windows_overlap_by_the_share_that_is_asked_for():
    model = Seen().eval()
    one = Member(model, info(size=16, classes=1))
    counts = []
    for overlap in (0.0, 0.5):
        model.shapes.clear()
        Segmenter([one], Options(tile=overlap)).segment(checkerboard(32, 64))
        counts.append(sum(shape[0] for shape in model.shapes))
    assert counts == [2 * 4, 3 * 7]


def test_views_and_colours_go_through_windows_too():
    pixels = np.repeat((checkerboard(40, 33) * 255).astype(np.uint8)[..., None], 3, axis=2)
    one = Member(OneLogit().eval(), info(size=16, classes=1, image_kind="rgb8", channels=3))
    found = Segmenter([one], Options(tile=0.25, tta="rotations")).segment(pixels)
    np.testing.assert_array_equal(found.mask, pixels[..., 0] > 0)


def test_a_bright_spot_is_weighed_by_where_it_lies_in_each_window():
    """Of two windows that see a pixel, the one that has it in its middle decides."""

    def predict(x: torch.Tensor) -> torch.Tensor:
        columns = torch.arange(x.shape[-1]).expand(x.shape[0], 1, x.shape[-2], -1)
        return (columns >= x.shape[-1] // 2).float()

    found = tiles.slide(predict, torch.zeros(1, 1, 16, 24), (16, 16), 0.5, 4)[0, 0, 8]
    assert found[:8].eq(0).all()
    assert found[16:].eq(1).all()
    assert (found[8:12] > 0.5).all(), "the first window has these right of its middle, the second at its left border"
