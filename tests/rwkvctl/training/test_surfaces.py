"""Distances of surfaces, HD95 and ASSD against medpy and distance transforms of whole arrays, in voxels and mm."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from medpy.metric.binary import asd, assd, hd95
from scipy.ndimage import binary_erosion, distance_transform_edt, gaussian_filter, generate_binary_structure
from scipy.spatial.distance import cdist

from rwkvctl.training import surfaces
from rwkvctl.training.surfaces import Distances, surface_distances


def plain(pred: np.ndarray, truth: np.ndarray, spacing: tuple[float, ...] | None) -> Distances:
    """By the definition: the distance transform of each surface, over the whole array."""
    faces = generate_binary_structure(pred.ndim, 1)
    first, second = (mask ^ binary_erosion(mask, structure=faces) for mask in (pred, truth))
    there = distance_transform_edt(~second, sampling=spacing)[first]
    back = distance_transform_edt(~first, sampling=spacing)[second]
    return Distances(there, back)


def same(found: Distances | None, expected: Distances) -> bool:
    assert found is not None
    return all(np.array_equal(*pair) for pair in zip(found, expected, strict=True))


def check(pred: np.ndarray, truth: np.ndarray, spacing: tuple[float, ...]) -> None:
    voxels, mm = surface_distances(pred, truth, spacing)
    assert mm is not None
    assert same(voxels, plain(pred, truth, None))
    for found, expected in zip(mm, plain(pred, truth, spacing), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-14, atol=0)
    assert voxels.hd95()[0] == hd95(pred, truth)
    assert mm.hd95()[0] == pytest.approx(hd95(pred, truth, voxelspacing=spacing), rel=1e-14, abs=0)
    assert voxels.average() == pytest.approx(assd(pred, truth), rel=1e-12)
    assert mm.average() == pytest.approx(assd(pred, truth, voxelspacing=spacing), rel=1e-12)
    assert mm.there.mean() == pytest.approx(asd(pred, truth, voxelspacing=spacing), rel=1e-12)
    alone, none = surface_distances(pred, truth)
    assert none is None
    assert same(alone, voxels)


def blob(shape: tuple[int, ...], seed: int, share: float = 0.2) -> np.ndarray:
    """A few smooth blobs."""
    noise = gaussian_filter(np.random.default_rng(seed).standard_normal(shape), 3)
    return noise > np.quantile(noise, 1 - share)


shapes = hnp.array_shapes(min_dims=2, max_dims=3, min_side=1, max_side=9)
pairs = shapes.flatmap(lambda shape: st.tuples(hnp.arrays(bool, shape), hnp.arrays(bool, shape)))


@settings(deadline=None, max_examples=200)
@given(pairs, st.lists(st.floats(0.3, 8), min_size=3, max_size=3), st.booleans(), st.integers(0, 3))
def test_any_two_masks(pair, spacing, square, margin) -> None:
    """Masks that touch the border and masks with a margin, pixels that are square and others."""
    pred, truth = (np.pad(mask, margin) for mask in pair)
    if pred.any() and truth.any():
        spacing = [*spacing[:-1], spacing[-2]] if square else spacing
        check(pred, truth, tuple(spacing[-pred.ndim :]))


SPACINGS = [(3.0, 0.76, 0.76), (3.0, 0.76, 0.7), (0.5, 1.0, 4.0), (1.0, 1.0, 1.0), (5.0, 0.3, 6.0)]


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("shape", [(14, 48, 40), (60, 52)])
def test_blobs(shape: tuple[int, ...], spacing: tuple[float, ...]) -> None:
    spacing = spacing[-len(shape) :]
    truth = blob(shape, 0)
    for pred in (truth, np.roll(truth, 3, axis=-1), blob(shape, 1), blob(shape, 2, share=0.01), blob(shape, 3, 0.7)):
        check(pred, truth, spacing)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_far_apart_one_voxel_noise_and_strays(spacing: tuple[float, ...]) -> None:
    shape = (20, 40, 36)
    far, near, noise, stray = (np.zeros(shape, bool) for _ in range(4))
    far[17:, 30:, 28:], near[:2, :9, :7] = True, True
    noise[:] = np.random.default_rng(0).random(shape) > 0.5
    stray[:2, :9, :7] = stray[19, 39, 35] = stray[0, 39, 0] = True
    one = np.zeros(shape, bool)
    one[10, 3, 30] = True
    for pred, truth in [(far, near), (noise, near), (stray, near), (one, far), (noise, one), (one, one)]:
        check(pred, truth, spacing)


def test_chunks_of_surface_voxels_join(monkeypatch: pytest.MonkeyPatch) -> None:
    pred, truth = blob((9, 30, 30), 4), blob((9, 30, 30), 5)
    expected = surface_distances(pred, truth, (2.0, 1.0, 1.0))
    monkeypatch.setattr(surfaces, "CHUNK", 100)
    assert all(map(same, surface_distances(pred, truth, (2.0, 1.0, 1.0)), expected))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("shape", [(1, 1023, 1023), (1, 400, 1390)])
def test_squares_are_whole_in_the_largest_slices(shape: tuple[int, int, int], threads: int) -> None:
    """With one thread, OpenCV would call Intel's library, which is off by one at distances above 886."""
    rng = np.random.default_rng(1)
    assert shape[1] ** 2 + shape[2] ** 2 <= surfaces.EXACT_PLANE
    before = cv2.getNumThreads()
    cv2.setNumThreads(threads)
    try:
        for points in ([(0, 0)], [(0, 0), (shape[1] - 1, shape[2] - 1)], rng.integers(0, shape[1:], (12, 2))):
            goal = np.zeros(shape, bool)
            expected = np.full(shape[1:], 2**31)
            for y, x in points:
                goal[0, y, x] = True
                away = np.square(np.arange(shape[1]) - y)[:, None] + np.square(np.arange(shape[2]) - x)
                np.minimum(expected, away, out=expected)
            assert np.array_equal(surfaces._squares_within_slices(goal)[0], expected)
    finally:
        cv2.setNumThreads(before)


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.4, 0.7)])
def test_pictures_beyond_what_float32_can_tell(spacing: tuple[float, float]) -> None:
    rng = np.random.default_rng(2)
    pred, truth = np.zeros((1500, 1300), bool), np.zeros((1500, 1300), bool)
    for mask in (pred, truth):
        mask[tuple(rng.integers(0, mask.shape, (300, 2)).T)] = True  # sparse: every pixel is of the surface
        mask[[0, -1], [0, -1]] = True
    for scale, found in zip(((1.0, 1.0), spacing), surface_distances(pred, truth, spacing), strict=True):
        away = cdist(np.argwhere(pred) * scale, np.argwhere(truth) * scale)
        there, back = away.min(axis=1), away.min(axis=0)
        expected = np.percentile(np.hstack((there, back)), 95), max(np.percentile(there, 95), np.percentile(back, 95))
        assert found is not None
        assert found.hd95() == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize("spacing", SPACINGS[:2])
@pytest.mark.parametrize("shape", [(60, 12, 10), (1, 1100, 1000)])
def test_noise_that_is_transformed_as_a_whole(shape: tuple[int, int, int], spacing: tuple[float, ...]) -> None:
    """Voxels that are far from one another in many slices, and slices too large for whole squares."""
    rng = np.random.default_rng(6)
    pred, truth = rng.random(shape) > 0.4, np.zeros(shape, bool)
    truth[-1, :3, :3] = True
    voxels, mm = surface_distances(pred, truth, spacing)
    assert same(voxels, plain(pred, truth, None))
    assert same(mm, plain(pred, truth, spacing))


def test_a_surface_voxel_has_a_face_neighbour_outside() -> None:
    mask = np.ones((3, 3, 3), bool)
    assert np.argwhere(~surfaces.surface_of(mask)).tolist() == [[1, 1, 1]]
    for seed in range(3):
        mask = blob((6, 20, 20), seed, 0.6)
        eroded = binary_erosion(mask, structure=generate_binary_structure(3, 1))
        assert np.array_equal(surfaces.surface_of(mask), mask ^ eroded)
