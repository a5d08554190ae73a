"""Several models, several views, thresholds and what is cleaned up, against answers worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch import nn

from rwkvctl.base.errors import UserError
from rwkvctl.models import inference
from rwkvctl.models.bundle import BundleInfo
from rwkvctl.models.clean_up import cleaned_up
from rwkvctl.models.ensemble import Member, Options, Segmenter


class Fixed(nn.Module):
    """The same logits (classes, H, W) for every image, whatever is in it."""

    def __init__(self, probabilities: Any) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.log(torch.tensor(probabilities, dtype=torch.float32)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.logits.expand(len(x), *self.logits.shape)


class OneLogit(nn.Module):
    """Of the foreground: the image's mean over its channels, less a half, times ten."""

    def __init__(self) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 10 * (x.mean(dim=1, keepdim=True) - self.level)


def info(size: Any = (1, 2), classes: int = 3, **fields: Any) -> BundleInfo:
    own = {"model": {"name": "x"}, "classes": [f"c{n}" for n in range(classes)], "image_size": size}
    return BundleInfo.model_validate(own | {"image_kind": "float", "channels": 1} | fields)


def member(probabilities: Any, **fields: Any) -> Member:
    return Member(Fixed(probabilities).eval(), info(**fields))


BLANK = np.zeros((1, 2), np.float32)
# (class, row, column): the first model is sure of class 1 on the left, the second fairly sure of class 2
FIRST = [[[0.1, 0.8]], [[0.6, 0.1]], [[0.3, 0.1]]]
SECOND = [[[0.1, 0.2]], [[0.2, 0.2]], [[0.7, 0.6]]]


def test_an_ensemble_is_the_mean_of_probabilities():
    found = Segmenter([member(FIRST), member(SECOND)], Options(probabilities=True)).segment(BLANK)
    assert found.probabilities is not None
    np.testing.assert_allclose(found.probabilities[:, 0], [[0.1, 0.5], [0.4, 0.15], [0.5, 0.35]], atol=1e-3)
    assert found.mask.tolist() == [[2, 0]]
    assert Segmenter([member(FIRST)]).segment(BLANK).mask.tolist() == [[1, 0]]


def test_each_model_has_its_own_temperature():
    calibration = {"temperature": 2.0}
    sharp, soft = member(FIRST), member(FIRST, calibration=calibration)
    found = [Segmenter([each], Options(probabilities=True)).segment(BLANK) for each in (sharp, soft)]
    powers = np.sqrt(np.array(FIRST))
    np.testing.assert_allclose(found[1].probabilities, powers / powers.sum(0), atol=1e-3)  # type: ignore[arg-type]
    both = Segmenter([sharp, soft], Options(probabilities=True)).segment(BLANK).probabilities
    mean = sum(each.probabilities.astype(float) for each in found) / 2  # type: ignore[union-attr]
    np.testing.assert_allclose(both, mean, atol=1e-3)  # type: ignore[arg-type]


def test_a_mask_of_one_model_depends_on_neither_its_temperature_nor_on_whether_probabilities_are_kept():
    rng = np.random.default_rng(0)
    logits = rng.random((3, 6, 7)) + 1e-3
    masks = [
        Segmenter([member(logits, size=(6, 7), calibration=calibration)], Options(probabilities=kept)).segment(
            np.zeros((41, 53), np.float32)
        )
        for calibration in (None, {"temperature": 0.4}, {"temperature": 4.0})
        for kept in (False, True)
    ]
    assert len(np.unique(masks[0].mask)) == 3
    assert all(np.array_equal(masks[0].mask, other.mask) for other in masks[1:])
    assert masks[2].sureness.mean_dsc > masks[0].sureness.mean_dsc > masks[4].sureness.mean_dsc  # type: ignore[union-attr]
    for plain, kept in zip(masks[::2], masks[1::2], strict=True):
        assert plain.sureness.predicted_dsc == pytest.approx(kept.sureness.predicted_dsc)  # type: ignore[union-attr]


def test_a_volume_is_segmented_as_its_slices_are():
    segmenter = Segmenter([member(FIRST), member(SECOND)], Options(probabilities=True))
    found = segmenter.segment(np.zeros((19, 1, 2), np.float32))
    assert found.probabilities is not None
    assert (found.mask.shape, found.probabilities.shape) == ((19, 1, 2), (3, 19, 1, 2))
    assert np.unique(found.mask.reshape(19, 2), axis=0).tolist() == [[2, 0]]


def test_flips_are_turned_back_before_they_are_averaged():
    """A network that looks at no pixel sees all views alike: the mean of its map and of its mirror image."""
    found = Segmenter([member(FIRST)], Options(tta="flips", probabilities=True)).segment(BLANK)
    assert found.probabilities is not None
    np.testing.assert_allclose(found.probabilities[:, 0], np.array([[0.45] * 2, [0.35] * 2, [0.2] * 2]), atol=1e-3)


@pytest.mark.parametrize("tta", ["flips", "rotations"])
def test_views_do_not_change_what_a_network_says_of_single_pixels(tta: Any):
    image = np.random.default_rng(0).random((32, 32)).astype(np.float32)
    one = Member(OneLogit().eval(), info(32, 2))
    assert np.array_equal(Segmenter([one], Options(tta=tta)).segment(image).mask, inference.segment(*one, image))


def test_thresholds_of_two_classes_and_of_more():
    pixels = np.array([[0.4, 0.45, 0.55, 0.6]], np.float32)
    one = Member(OneLogit().eval(), info((1, 4), 2))
    for least, expected in ((0.5, [0, 0, 1, 1]), (0.3, [0, 1, 1, 1]), (0.7, [0, 0, 0, 1]), (0.0, [1, 1, 1, 1])):
        assert Segmenter([one], Options(thresholds={1: least})).segment(pixels).mask.tolist() == [expected], least
    three = [member(FIRST)]
    assert Segmenter(three, Options(thresholds={1: 0.6})).segment(BLANK).mask.tolist() == [[1, 0]]
    assert Segmenter(three, Options(thresholds={1: 0.7})).segment(BLANK).mask.tolist() == [[2, 0]]
    assert Segmenter(three, Options(thresholds={1: 0.7, 2: 0.5})).segment(BLANK).mask.tolist() == [[0, 0]]


def test_models_that_are_asked_different_questions_are_no_ensemble():
    for fields in ({"classes": ["c0", "c1", "other"]}, {"channels": 3}, {"orientation": "axial"}):
        with pytest.raises(UserError, match=f"these models are no ensemble: {next(iter(fields))} is "):
            Segmenter([member(FIRST), Member(Fixed(SECOND).eval(), info().model_copy(update=fields))])
    with pytest.raises(UserError, match=r"--tta rotations: the model takes images of \(1, 2\), not square ones"):
        Segmenter([member(FIRST)], Options(tta="rotations"))


def test_the_largest_part_and_holes():
    mask = np.array(
        [
            [1, 1, 1, 0, 2],
            [1, 0, 1, 0, 0],
            [1, 1, 1, 0, 1],
            [0, 0, 0, 1, 0],
            [2, 2, 0, 0, 0],
        ],
        np.uint8,
    )
    largest = cleaned_up(mask, largest_component=True, fill_holes=False)
    assert largest.tolist() == [[1, 1, 1, 0, 0], [1, 0, 1, 0, 0], [1, 1, 1, 0, 0], [0, 0, 0, 0, 0], [2, 2, 0, 0, 0]]
    both = cleaned_up(mask, largest_component=True, fill_holes=True)
    assert both[1, 1] == 1
    assert (np.delete(both.ravel(), 6) == np.delete(largest.ravel(), 6)).all()
    mask[1, 1] = 3  # of another class: no hole
    assert cleaned_up(mask, largest_component=False, fill_holes=True).tolist() == mask.tolist()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([(9, 7), (4, 6, 5)]))
def test_cleaned_up_masks_have_one_part_a_class_and_never_another_class(seed: int, shape: tuple[int, ...]):
    mask = np.random.default_rng(seed).integers(0, 4, shape).astype(np.uint8)
    found = cleaned_up(mask, largest_component=True, fill_holes=True)
    for class_id in np.unique(mask[mask > 0]):
        assert ndimage.label(found == class_id)[1] == 1
