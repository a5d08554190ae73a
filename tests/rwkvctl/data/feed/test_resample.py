"""Volumes at another spacing, beside SciPy's zoom and SimpleITK's resampling."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkvctl.data.feed.resample import resize_image, resize_maps, resize_mask, shape_at

SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 17), st.integers(1, 17))


def ball(shape: tuple[int, int, int], radius: float = 0.35) -> np.ndarray:
    """A ball in a box, whatever its voxels are."""
    grid = np.stack(np.meshgrid(*((np.arange(n) + 0.5) / n - 0.5 for n in shape), indexing="ij"))
    return (np.square(grid).sum(0) < radius**2).astype(np.uint8)


@given(SHAPES, SHAPES)
@settings(max_examples=30, deadline=None)
def test_a_constant_stays_and_maps_keep_their_range(shape: tuple[int, int, int], wanted: tuple[int, int, int]):
    volume = torch.from_numpy(np.random.default_rng(0).random((2, *shape), np.float32))
    for resize in (resize_image, resize_maps):
        torch.testing.assert_close(resize(torch.ones_like(volume), wanted), torch.ones(2, *wanted))
        assert torch.equal(resize(volume, shape), volume)
    found = resize_maps(volume, wanted)
    assert tuple(found.shape) == (2, *wanted)
    assert found.min() >= volume.min() - 1e-6
    assert found.max() <= volume.max() + 1e-6


@pytest.mark.parametrize("wanted", [(8, 24, 24), (8, 10, 14), (16, 20, 20), (5, 20, 20), (11, 37, 13)])
def test_voxels_stay_where_they_are_in_the_body_as_simpleitk_has_it(wanted: tuple[int, int, int]):
    shape = (8, 20, 20)
    z, y, x = np.meshgrid(*((np.arange(n) + 0.5) / n for n in shape), indexing="ij")
    smooth = (z + 2 * y - x).astype(np.float32)
    found = resize_maps(torch.from_numpy(smooth)[None], wanted)[0].numpy()
    theirs = by_simpleitk(smooth, wanted, sitk.sitkLinear)
    inside = tuple(slice(2, -2) if n > 8 else slice(1, -1) for n in wanted)
    np.testing.assert_allclose(found[inside], theirs[inside], atol=1e-5)


@pytest.mark.parametrize("wanted", [(24, 40, 40), (12, 60, 30), (12, 20, 20), (6, 40, 40)])
def test_masks_keep_their_form(wanted: tuple[int, int, int]):
    mask = ball((12, 40, 40)) * 3
    mask[ball((12, 40, 40), 0.2) > 0] = 255
    found = resize_mask(mask, wanted)
    assert set(np.unique(found)) == {0, 3, 255}
    for value, truth in ((0, 1 - ball(wanted)), (255, ball(wanted, 0.2))):
        own = found == value
        assert 2 * (own & (truth > 0)).sum() / (own.sum() + truth.sum()) > 0.9
    assert np.array_equal(resize_mask(mask, mask.shape), mask)  # type: ignore[arg-type]


def test_there_and_back_loses_little():
    image = by_simpleitk(np.random.default_rng(1).random((6, 10, 10), np.float32), (12, 40, 40), sitk.sitkBSpline)
    there = resize_image(torch.from_numpy(image)[None], (12, 60, 60))
    back = resize_image(there, (12, 40, 40))[0].numpy()
    assert np.abs(back - image).mean() < 0.02 * image.std()


@pytest.mark.parametrize(
    ("shape", "spacing", "wanted", "found"),
    [
        ((10, 256, 216), (10.0, 1.5625, 1.5625), (10.0, 1.5, 1.5), (10, 267, 225)),
        ((100, 512, 512), (1.0, 0.7, 0.7), (2.0, 1.4, 1.4), (50, 256, 256)),
        ((1, 4, 4), (1.0, 1.0, 1.0), (9.0, 9.0, 9.0), (1, 1, 1)),
    ],
)
def test_the_shape_covers_the_same_body(shape, spacing, wanted, found):
    assert shape_at(shape, spacing, wanted) == found


def by_simpleitk(volume: np.ndarray, wanted: tuple[int, int, int], how: int) -> np.ndarray:
    """The same box of space with other voxels, by SimpleITK."""
    image = sitk.GetImageFromArray(volume)
    size = volume.shape[::-1]
    spacing = [have / want for have, want in zip(size, wanted[::-1], strict=True)]
    reference = sitk.Image(list(wanted[::-1]), sitk.sitkFloat32)
    reference.SetSpacing(spacing)
    reference.SetOrigin([(step - 1) / 2 for step in spacing])
    resampler = sitk.ResampleImageFilter()
    resampler.SetReferenceImage(reference)
    resampler.SetInterpolator(how)
    resampler.SetUseNearestNeighborExtrapolator(True)
    return sitk.GetArrayFromImage(resampler.Execute(image))


def test_a_single_column_is_resized_as_one_of_several():
    column = torch.rand(1, 3, 14, 1)
    for height in (30, 7):
        found = resize_image(column, (3, height, 1))
        torch.testing.assert_close(found, resize_image(column.expand(-1, -1, -1, 5), (3, height, 5))[..., :1])
