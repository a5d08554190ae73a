"""ASSD, NSD and the figures of overlap and volume: published cases of other libraries, noise in MONAI, and by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from rwkvctl.base.directions import smaller_is_better
from rwkvctl.config.specs.objectives import MORE_SCORES, SCORES, parse_objective
from rwkvctl.training import metrics
from rwkvctl.training.metrics import Choices


def score(pred: Any, truth: Any, spacing: tuple[float, ...] | None = None, **choices: Any) -> metrics.ClassScore:
    masks = (np.asarray(mask, np.uint8) for mask in (pred, truth))
    [found] = metrics.score_case(*masks, 2, spacing, choices=Choices(**choices))
    return found


# MONAI's tests of compute_average_surface_distance and compute_surface_dice ------------------------------------------


def sphere(radius: float, centre: tuple[float, ...], spacing: tuple[float, ...] = (1, 1, 1)) -> np.ndarray:
    """In 99 x 99 x 99 voxels; radius and centre in mm."""
    axes = np.ogrid[:99, :99, :99]
    away = sum((axis * side - c) ** 2 for axis, side, c in zip(axes, spacing, centre, strict=True))
    return away <= radius**2


@pytest.mark.parametrize(
    ("first", "second", "spacing", "expected"),
    [
        ((33, (19, 33, 22)), (33, (20, 33, 22)), None, 0.350217),
        ((20, (20, 33, 22)), (40, (20, 33, 22)), None, 15.117741),
        ((33, (42, 45, 52)), (33, (43, 45, 52)), (0.85, 1.2, 0.9), 0.4951),
    ],
)
def test_the_average_distance_of_monais_spheres(first, second, spacing, expected) -> None:
    found = score(*(sphere(*one, spacing or (1, 1, 1)) for one in (first, second)), spacing)
    ours = found.strict_assd_vox if spacing is None else found.strict_assd_mm
    assert ours == pytest.approx(expected, rel=1e-5, abs=5e-5 if spacing else 0)


def test_the_surface_dice_of_monais_shifted_halves() -> None:
    pred, truth = np.zeros((480, 640)), np.zeros((480, 640))
    pred[:, 50:] = 1
    truth[:, 60:] = 1
    expected = 1 - (478 + 480 + 9 * 2) / (480 * 4 + 588 * 2 + 578 * 2)
    assert score(pred, truth, tolerance_vox=0).strict_nsd_vox == pytest.approx(expected, rel=1e-12)
    shares = [score(pred, truth, tolerance_vox=px).strict_nsd_vox for px in (0, 1, 9, 10, 11)]
    assert shares == sorted(shares)
    assert shares[2] < shares[3] == shares[4] == 1
    in_mm = [score(pred, truth, (0.85, 1.2), tolerance_mm=mm).strict_nsd_mm for mm in (0, 11, 12, 13)]
    assert in_mm[0] == pytest.approx(expected, rel=1e-12)
    assert in_mm[1] < in_mm[2] == in_mm[3] == 1, "ten pixels of 1.2 mm are 12 mm, whatever the 16th digit says"


def test_the_surface_dice_of_monais_two_strokes() -> None:
    pred, truth = np.zeros((10, 10)), np.zeros((10, 10))
    pred[1:4, 1] = 1
    truth[5:8, 6] = 1
    for tolerance, expected in ((0, 0), (5.5, 1 - 4 / 6), (6, 1 - 2 / 6)):
        assert score(pred, truth, tolerance_vox=tolerance).strict_nsd_vox == pytest.approx(expected)
    there = [math.hypot(5, 2), math.hypot(5, 3), math.hypot(5, 4)]
    assert score(pred, truth).strict_assd_vox == pytest.approx(sum(there) / 3)


@pytest.mark.slow  # for MONAI's import
@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")  # MONAI's, of a call of its own
@pytest.mark.parametrize("shape", [(7, 9), (30, 20), (5, 8, 6), (3, 20, 16)])
@pytest.mark.parametrize("share", [0.1, 0.5])
def test_masks_of_noise_have_monais_figures(shape: tuple[int, ...], share: float) -> None:
    import torch
    from monai.metrics import compute_average_surface_distance, compute_iou, compute_surface_dice

    rng = np.random.default_rng(len(shape))
    pred, truth = (np.pad(rng.random(shape) < share, 1) for _ in range(2))
    spacing, tolerance = tuple(rng.uniform(0.3, 4, len(shape))), rng.uniform(0.5, 3)
    found = score(pred, truth, spacing, tolerance_mm=tolerance)
    batch = [torch.from_numpy(np.stack([~mask, mask]))[None] for mask in (pred, truth)]
    distance = compute_average_surface_distance(*batch, symmetric=True, spacing=spacing)
    assert found.strict_assd_mm == pytest.approx(distance.item(), rel=1e-5, abs=1e-6)
    share = compute_surface_dice(*batch, class_thresholds=[tolerance], spacing=spacing)
    assert found.strict_nsd_mm == pytest.approx(share.item(), rel=1e-5)
    assert found.strict_iou == pytest.approx(compute_iou(*batch, include_background=False).item(), rel=1e-5)


# DeepMind's surface-distance weighs surfaces by area: where it agrees, and where it does not -------------------------


@pytest.mark.parametrize(("shape", "at", "spacing"), [((128, 128), (50,), (2, 1)), ((128,) * 3, (50, 60), (3, 2, 1))])
def test_two_voxels_2_mm_apart(shape, at, spacing) -> None:
    pred, truth = np.zeros(shape), np.zeros(shape)
    pred[(*at, 72)] = truth[(*at, 70)] = 1
    found = score(pred, truth, spacing)
    assert (found.strict_hd95_mm, found.strict_hd95_max_mm, found.strict_dsc) == (2, 2, 0)  # as DeepMind's
    assert (found.strict_assd_mm, found.strict_nsd_mm) == (
        2,
        0,
    )  # DeepMind's: 1.5 and 0.5, from the faces between voxels


def test_two_slabs_that_differ_by_a_slice() -> None:
    pred, truth = np.zeros((100, 100, 100)), np.zeros((100, 100, 100))
    truth[:50] = 1
    pred[:51] = 1
    found = score(pred, truth, (2, 1, 1))
    assert found.strict_dsc == pytest.approx(0.990, abs=5e-4)  # as DeepMind's
    assert found.strict_hd95_max_mm == 2
    surfaces = 2 * 2 * 100 * 100 + (48 + 49) * (4 * 100 - 4)
    # Of each mask's last slice; but what is 1 mm from the truth's side is as near to the prediction's.
    far = 96 * 96 + 100 * 100
    assert found.strict_nsd_mm == pytest.approx(1 - far / surfaces)


@pytest.mark.parametrize("shape", [(128, 128), (16, 16, 16)])
@pytest.mark.parametrize("spacing", [None, (3.0, 2.0, 1.0)])
def test_where_one_is_empty_nsd_is_0_and_no_distance_exists(shape, spacing) -> None:
    empty, one = np.zeros(shape), np.zeros(shape)
    one[(5,) * len(shape)] = 1
    spacing = spacing and spacing[: len(shape)]
    for pred, truth in ((empty, one), (one, empty)):
        found = score(pred, truth, spacing)
        assert (found.strict_nsd_vox, found.strict_iou, found.strict_dsc) == (0, 0, 0)
        assert found.strict_nsd_mm == (None if spacing is None else 0)
        assert (found.strict_assd_vox, found.strict_assd_mm, found.strict_hd95_vox) == (None, None, None)
    both = score(empty, empty, spacing)
    assert all(getattr(both, field) is None for field in metrics.FIGURES.values() if field.startswith("strict_"))


# Overlap and volume --------------------------------------------------------------------------------------------------


def test_overlap_and_volume_by_hand() -> None:
    pred, truth = np.zeros((4, 4, 4)), np.zeros((4, 4, 4))
    truth[:2] = 1  # 32
    pred[1] = 1  # 16, all of them right
    pred[3, :2] = 1  # 8 that are not
    found = score(pred, truth, (5.0, 2.0, 1.5))
    assert found.strict_iou == 16 / 40
    assert (found.strict_precision, found.strict_sensitivity) == (16 / 24, 16 / 32)
    assert found.strict_volume_difference == 8 / 32
    assert found.strict_volume_difference_ml == pytest.approx(8 * 15 / 1000)
    flat = score(pred[1], truth[1], (2.0, 1.5))
    assert (flat.strict_volume_difference, flat.strict_volume_difference_ml) == (0, None), "a picture has no ml"


def test_what_is_undefined_is_counted_and_not_averaged() -> None:
    empty, full = np.zeros((2, 2, 2), np.uint8), np.ones((2, 2, 2), np.uint8)
    masks = {"right": (full, full), "missed": (empty, full), "false": (full, empty), "none": (empty, empty)}
    cases = {key: metrics.score_case(*pair, 2, (1.0, 1.0, 1.0)) for key, pair in masks.items()}
    mean = metrics.summarise(cases, ["background", "organ"])["mean"]
    assert mean["iou_strict"] == mean["nsd_mm_strict"] == mean["nsd_vox_strict"] == pytest.approx(1 / 3)
    assert mean["precision_strict"] == 1 / 2  # right 1, false 0
    assert mean["sensitivity_strict"] == 1 / 2  # right 1, missed 0
    assert mean["volume_difference_strict"] == 1 / 2  # right 0, missed 1
    assert mean["volume_difference_ml_strict"] == pytest.approx((0 + 0.008 + 0.008) / 3)
    assert mean["assd_mm_strict"] == 0
    counts = {count: mean[count] for count in metrics.COUNTS}
    assert counts == {
        "both_empty": 1, "undefined_hd95": 2, "empty_prediction": 1, "empty_truth": 1, "no_spacing": 0,
    }  # fmt: skip


def test_an_nsd_of_another_tolerance_has_another_name() -> None:
    choices = Choices(tolerance_mm=2.5, tolerance_vox=2)
    cases = {"a": metrics.score_case(*[np.eye(4, dtype=np.uint8)] * 2, 2, (1.0, 1.0), choices=choices)}
    summary = metrics.summarise(cases, ["background", "organ"], choices)
    assert summary["nsd_tolerance"] == {"mm": 2.5, "vox": 2}
    assert "nsd_mm_strict" not in summary["mean"]
    assert metrics.flat_metrics(summary)["test/nsd_mm_strict_at_2.5/mean"] == 1
    assert metrics.flat_metrics(summary)["test/nsd_vox_strict/mean"] == 1
    [row] = metrics.case_rows(cases, ["background", "organ"], choices)
    assert row["nsd_mm_strict_at_2.5"] == 1


def test_a_run_tracks_the_mean_alone_of_most_figures() -> None:
    labels = np.arange(4, dtype=np.uint8).reshape(2, 2)
    summary = metrics.summarise({"a": metrics.score_case(labels, labels, 4)}, ["background", "a", "b", "c"])
    flat = metrics.flat_metrics(summary)
    assert "test/iou_strict/mean" in flat
    assert "test/dsc_strict/b" in flat
    assert not [name for name in flat if name.startswith("test/iou_strict/") and not name.endswith("/mean")]


def test_the_direction_of_every_figure_is_known() -> None:
    less = {name for name in (*metrics.FIGURES, *metrics.LESION_FIGURES) if smaller_is_better(f"test/{name}/mean")}
    assert less == {name for name in metrics.FIGURES if name.startswith(("hd95", "assd", "volume_difference"))}
    assert {*SCORES, *MORE_SCORES} == set(metrics.FIGURES)
    for name in metrics.FIGURES:
        assert parse_objective(name).direction == ("minimize" if name in less else "maximize")
