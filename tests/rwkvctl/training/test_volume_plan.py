"""Plans of networks over three axes, beside those that nnU-Net 2 publishes for the same data."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkvctl.training.volume_plan import CaseSize, levels_for, median_shape, patch_for, spacing_for

ACDC = [CaseSize((10, 256, 216), (10.0, 1.5625, 1.5625))] * 3


def test_acdc_goes_down_as_nnunet_has_it():
    """nnU-Net's plan for Dataset027_ACDC, 3d_fullres: patch [20, 256, 224] at 5 mm slices; here 10 mm ones."""
    spacing = spacing_for(ACDC)
    assert spacing == (10.0, 1.5625, 1.5625)
    assert median_shape(ACDC, spacing) == (10, 256, 216)
    levels = levels_for((10, 256, 224), spacing)
    assert levels.kernels[:3] == ((1, 3, 3), (1, 3, 3), (3, 3, 3))
    assert levels.strides == ((1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2), (1, 2, 2), (1, 2, 2))
    assert patch_for((10, 256, 216), spacing, 2**20) == (10, 256, 224)


def test_a_brain_of_cubes_is_halved_along_all_axes_as_nnunet_has_it():
    """nnU-Net's plan for BraTS, 3d_fullres: patch [128, 128, 128], five poolings along each axis."""
    levels = levels_for((128, 128, 128), (1.0, 1.0, 1.0))
    assert levels.strides == ((1, 1, 1), *[(2, 2, 2)] * 5)
    assert levels.kernels == ((3, 3, 3),) * 6


def test_prostates_are_seen_in_their_plane_first_as_nnunet_has_it():
    """nnU-Net's plan for Task05_Prostate: patch [20, 320, 256], spacing 3.6 x 0.62 x 0.62."""
    levels = levels_for((20, 320, 256), (3.6, 0.62, 0.62))
    assert levels.kernels == ((1, 3, 3), (1, 3, 3), *[(3, 3, 3)] * 5)
    assert levels.strides == ((1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2), (1, 2, 2))


@pytest.mark.parametrize(
    ("slices", "found"),
    [
        ([(5.0, 0.8, 0.8), (5.0, 0.8, 0.8), (5.0, 0.8, 0.8), (1.0, 0.8, 0.8)], (2.2, 0.8, 0.8)),  # few thick slices
        ([(1.0, 0.8, 0.8), (2.0, 0.6, 0.6), (1.5, 0.7, 0.7)], (1.5, 0.7, 0.7)),
    ],
)
def test_thick_slices_are_brought_to_the_thinner_ones(slices, found):
    assert spacing_for([CaseSize((40, 512, 512), each) for each in slices]) == pytest.approx(found)


def test_a_case_without_spacing_leaves_all_as_they_are():
    assert spacing_for([CaseSize((10, 64, 64), (2.0, 1.0, 1.0)), CaseSize((10, 64, 64), None)]) is None


@given(
    st.tuples(st.integers(1, 300), st.integers(8, 512), st.integers(8, 512)),
    st.tuples(st.floats(0.3, 10), st.floats(0.3, 2), st.floats(0.3, 2)),
    st.integers(2**12, 2**21),
    st.sampled_from([None, 5]),
)
@settings(max_examples=60, deadline=None)
def test_patches_fit(median, spacing, voxels, most):
    """Within the budget unless one step down is more than it, and no axis longer than the volume by a whole divisor."""
    patch = patch_for(median, spacing, voxels, most)
    levels = levels_for(patch, spacing, most)
    divisor = levels.divisor
    assert all(side < n + 64 for side, n in zip(patch, median, strict=True))
    assert len(levels.kernels) == len(levels.strides)
    assert math.prod(patch) <= voxels or any(side <= d * 2 for side, d in zip(patch, divisor, strict=True))
    deepest = [side / d for side, d in zip(patch, divisor, strict=True)]
    assert all(left >= 3 or d == 1 for left, d in zip(deepest, divisor, strict=True))
