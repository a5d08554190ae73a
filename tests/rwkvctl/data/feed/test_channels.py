"""The feed of images of several channels, in [0, 1] and in deviations from a mean."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from rwkvctl.config.specs.augment import SegmentationAugment
from rwkvctl.data.convert import synth
from rwkvctl.data.convert.prepare import prepare
from rwkvctl.data.feed import transforms
from rwkvctl.data.feed.cases import SliceLoader, case_reader, iter_cases
from rwkvctl.data.feed.views import two_views

RNG = np.random.default_rng(2)
PRESETS = [SegmentationAugment(preset=preset) for preset in ("paper", "nnunet", "photo")]


def image(channels: int, deviations: bool) -> np.ndarray:
    values = RNG.random((40, 36, channels), np.float32)
    return (values - 0.4) * 9 if deviations else values


@pytest.mark.parametrize("augment", PRESETS, ids=["paper", "nnunet", "photo"])
@pytest.mark.parametrize("deviations", [False, True])
@pytest.mark.parametrize("channels", [2, 4, 7])
def test_every_channel_stays_within_its_own_range(augment: SegmentationAugment, deviations: bool, channels: int):
    values, mask = image(channels, deviations), np.zeros((40, 36), np.uint8)
    low, high = (values.min(axis=(0, 1)), values.max(axis=(0, 1))) if deviations else (np.zeros(1), np.ones(1))
    transform = transforms.segmentation_train((32, 32), augment)
    for seed in range(12):
        found, _ = transform(values, mask, np.random.default_rng(seed))
        again, _ = transform(values, mask, np.random.default_rng(seed))
        assert torch.equal(found, again)
        assert (found.dtype, found.shape) == (torch.float32, (channels, 32, 32))
        rows = found.permute(1, 2, 0).numpy()
        assert (rows >= low - 1e-4 * abs(low) - 1e-5).all()
        assert (rows <= high + 1e-4 * abs(high) + 1e-5).all()


def test_without_augmentation_values_are_those_of_the_shard():
    values = image(5, deviations=True)
    found, _ = transforms.segmentation_train((40, 36), None)(values, np.zeros((40, 36), np.uint8), RNG)
    np.testing.assert_array_equal(found.permute(1, 2, 0), values)


def test_more_channels_than_opencv_resizes_at_once():
    values = image(6, deviations=False)
    whole = transforms.resize_image(values, (17, 19))
    for channel in range(6):
        alone = transforms.resize_image(np.ascontiguousarray(values[..., channel]), (17, 19))
        np.testing.assert_allclose(whole[..., channel], alone, atol=1e-6)


@pytest.mark.parametrize("deviations", [False, True])
def test_two_views_of_unlabeled_images(deviations: bool):
    values = image(2, deviations)
    views, _ = two_views(values, (32, 32), PRESETS[0], np.random.default_rng(0))
    assert views.shape == (4, 32, 32)
    low, high = (values.min(), values.max()) if deviations else (0, 1)
    assert low - 1e-4 <= float(views.min()) < float(views.max()) <= high + 1e-4


def test_batches_and_cases_of_two_channels(tmp_path: Path):
    tree = synth.write("nnunet:channels", tmp_path / "source", n=6, size=32)
    made = prepare("nnunet", [tree], tmp_path / "tumours", seeds=[1], ratio="4:1:1")
    [case] = iter_cases(made, split=None, part="test")
    assert (case.image.shape, case.mask.shape) == ((6, 32, 32, 2), (6, 32, 32))
    reader = case_reader(made, split=None, part="test", rank=0, world_size=1)
    loader = SliceLoader(reader, image_size=16, batch=4, workers=0)
    assert [tuple(batch.images.shape) for batch in loader] == [(4, 2, 16, 16), (2, 2, 16, 16)]
