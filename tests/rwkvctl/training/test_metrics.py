"""DSC and HD95 against the authors' values, against medpy on whole volumes, and by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from medpy.metric.binary import dc, hd95

from rwkvctl.base.errors import UserError
from rwkvctl.training import metrics

GOLDENS = Path(__file__).parents[2] / "goldens" / "metrics.npz"
CASES = [
    "2d_blob", "2d_random", "2d_blob_outlier", "3d_blob", "3d_random", "2d_identical", "2d_disjoint",
    "2d_one_pixel", "2d_empty_pred", "2d_empty_gt", "2d_both_empty", "3d_empty_pred", "3d_empty_gt",
    "3d_both_empty",
]  # fmt: skip


def golden(name: str) -> tuple[np.ndarray, np.ndarray, float, float]:
    with np.load(GOLDENS, allow_pickle=False) as file:
        shape = tuple(file[f"{name}/shape"])
        size = int(np.prod(shape))
        pred, truth = (np.unpackbits(file[f"{name}/{k}"], count=size).reshape(shape) for k in ("pred", "gt"))
        dsc, distance = file[f"{name}/dice_hd95"]
    return pred, truth, float(dsc), float(distance)


@pytest.mark.parametrize("name", CASES)
def test_official_convention_is_the_authors(name: str) -> None:
    pred, truth, dsc, distance = golden(name)
    [score] = metrics.score_case(pred, truth, 2)
    assert score.official_dsc == pytest.approx(dsc, abs=1e-12)
    assert score.official_hd95 == pytest.approx(distance, abs=1e-12)


@pytest.mark.parametrize(
    ("pred", "truth", "official", "strict", "note"),
    [
        (0, 0, (0.0, 0.0), (None, None, None), "both empty"),
        (0, 1, (0.0, 0.0), (0.0, None, None), "empty prediction"),
        (1, 0, (1.0, 0.0), (0.0, None, None), "empty truth"),
        (1, 1, (1.0, 0.0), (1.0, 0.0, 0.0), ""),
    ],
)
@pytest.mark.parametrize("shape", [(6, 7), (3, 6, 7)])
def test_conventions_where_something_is_empty(pred, truth, official, strict, note, shape) -> None:
    spacing = (2.0,) * len(shape)
    [score] = metrics.score_case(np.full(shape, pred, np.uint8), np.full(shape, truth, np.uint8), 2, spacing)
    assert (score.official_dsc, score.official_hd95) == official
    assert (score.strict_dsc, score.strict_hd95_vox, score.strict_hd95_mm) == strict
    assert score.note == note


@pytest.mark.parametrize("margin", [0, 3])
def test_dsc_and_hd95_of_several_classes_are_medpys(margin: int) -> None:
    """Each class in its own box, in masks that touch the border and in those that lie in a void."""
    rng = np.random.default_rng(3)
    coarse = rng.integers(0, 5, (2, 4, 6, 5)).astype(np.uint8)
    pred, truth = (np.pad(one.repeat(3, axis=1).repeat(3, axis=2), margin) for one in coarse)
    spacing = (2.5, 0.8, 0.8)
    for score in metrics.score_case(pred, truth, 5, spacing):
        own = pred == score.class_id, truth == score.class_id
        assert score.strict_dsc == score.official_dsc == dc(*own)
        assert score.strict_hd95_vox == score.official_hd95 == hd95(*own)
        assert score.strict_hd95_mm == pytest.approx(hd95(*own, voxelspacing=spacing), rel=1e-14, abs=0)


def test_spacing_scales_each_axis() -> None:
    pred, truth = np.zeros((9, 9), np.uint8), np.zeros((9, 9), np.uint8)
    pred[1, 4], truth[6, 4] = 1, 1
    [score] = metrics.score_case(pred, truth, 2, (3.0, 1.0))
    assert (score.strict_hd95_vox, score.strict_hd95_mm) == (5.0, 15.0)
    assert score.official_hd95 == 5.0


def test_the_larger_directed_percentile_in_a_published_case() -> None:
    """MetricsReloaded's own test of HD95 (figure 20 of its paper): one stray pixel beside a square of 3 x 3."""
    truth = np.zeros((14, 14), np.uint8)
    truth[9:12, 9:12] = 1
    pred = truth.copy()
    pred[1, 1] = 1
    for masks in ((pred, truth), (truth, pred)):
        [score] = metrics.score_case(*masks, 2, (2.0, 2.0))
        assert (score.strict_hd95_vox, score.strict_hd95_max_vox) == pytest.approx((2.2627, 6.7882), abs=1e-4)
        assert (score.strict_hd95_mm, score.strict_hd95_max_mm) == pytest.approx((4.5255, 13.5765), abs=1e-4)
    assert score.strict_hd95_vox == score.official_hd95 == hd95(pred, truth)
    summary = metrics.summarise({"a": [score]}, ["background", "square"])
    assert summary["mean"]["hd95_max_vox_strict"] == score.strict_hd95_max_vox
    assert metrics.flat_metrics(summary)["test/hd95_max_mm_strict/mean"] == score.strict_hd95_max_mm


@pytest.mark.parametrize("spacing", [None, (3.0, 0.7, 0.5)])
def test_the_larger_directed_percentile_is_that_of_all_pairs(spacing: tuple[float, ...] | None) -> None:
    from scipy.spatial.distance import cdist

    rng = np.random.default_rng(5)
    pred, truth = (rng.random((2, 6, 12, 11)) > 0.9).astype(np.uint8)  # sparse: every voxel is of the surface
    [score] = metrics.score_case(pred, truth, 2, spacing)
    pairs = cdist(np.argwhere(pred) * (spacing or 1.0), np.argwhere(truth) * (spacing or 1.0))
    expected = max(np.percentile(pairs.min(axis=1), 95), np.percentile(pairs.min(axis=0), 95))
    ours = score.strict_hd95_max_vox if spacing is None else score.strict_hd95_max_mm
    assert ours == pytest.approx(expected)


def test_without_hd95_no_distance_is_made_up() -> None:
    pred = np.eye(5, dtype=np.uint8)
    for truth in (pred, np.zeros_like(pred)):
        [score] = metrics.score_case(pred, truth, 2, (1.0, 1.0), hd95=False)
        assert (score.official_hd95, score.strict_hd95_vox, score.strict_hd95_mm) == (None, None, None)


def test_ignored_pixels_count_neither_way() -> None:
    truth = np.array([[1, 1, 255, 255]], np.uint8)
    pred = np.array([[1, 1, 1, 0]], np.uint8)
    assert metrics.score_case(pred, truth, 2)[0].strict_dsc == pytest.approx(0.8)
    assert metrics.score_case(pred, truth, 2, ignore_index=255)[0].strict_dsc == 1.0


@pytest.mark.parametrize(
    ("pred", "truth", "spacing", "message"),
    [
        ((4, 4), (4, 5), None, "one shape"),
        ((4,), (4,), None, "one shape"),
        ((4, 4), (4, 4), (1.0, 1.0, 1.0), "spacing_mm"),
        ((4, 4), (4, 4), (1.0, 0.0), "spacing_mm"),
    ],
)
def test_wrong_shapes_are_the_users_mistake(pred, truth, spacing, message) -> None:
    with pytest.raises(UserError, match=message):
        metrics.score_case(np.zeros(pred, np.uint8), np.zeros(truth, np.uint8), 2, spacing)


def _summary() -> dict:
    """Two cases, two organs: case b has a liver in the prediction only, and no spleen at all."""
    truth_a = np.array([[1, 1, 0, 0], [0, 0, 2, 2]], np.uint8)
    pred_a = np.array([[1, 0, 0, 0], [0, 0, 2, 2]], np.uint8)
    truth_b, pred_b = np.zeros((2, 4), np.uint8), np.zeros((2, 4), np.uint8)
    pred_b[0, 0] = 1
    cases = {
        "a": metrics.score_case(pred_a, truth_a, 3, (1.0, 2.0)),
        "b": metrics.score_case(pred_b, truth_b, 3),
    }
    return metrics.summarise(cases, ["background", "liver", "spleen/left"])


def test_summary_averages_over_cases_then_classes() -> None:
    summary = _summary()
    assert summary == json.loads(json.dumps(summary))
    assert summary["cases"] == 2
    liver, spleen, mean = summary["classes"]["liver"], summary["classes"]["spleen/left"], summary["mean"]
    assert liver["dsc_official"] == pytest.approx((2 / 3 + 1) / 2)
    assert liver["dsc_strict"] == pytest.approx((2 / 3 + 0) / 2)
    assert spleen["dsc_official"] == pytest.approx((1 + 0) / 2)
    assert spleen["dsc_strict"] == 1.0
    assert mean["dsc_official"] == pytest.approx((liver["dsc_official"] + 0.5) / 2)
    assert mean["dsc_strict"] == pytest.approx((1 / 3 + 1) / 2)
    assert (liver["undefined_hd95"], spleen["both_empty"]) == (1, 1)
    assert (mean["undefined_hd95"], mean["both_empty"], mean["no_spacing"]) == (1, 1, 0)


def test_figure_nobody_can_give_is_none_and_not_logged() -> None:
    empty = np.zeros((3, 3), np.uint8)
    summary = metrics.summarise({"a": metrics.score_case(empty, empty, 2)}, ["background", "mean"])
    assert summary["mean"]["dsc_strict"] is None
    assert metrics.flat_metrics(summary) == {
        "test/dsc_official/mean": 0.0,
        "test/dsc_official/mean_1": 0.0,
        "test/hd95_vox_official/mean": 0.0,
        "test/hd95_vox_official/mean_1": 0.0,
    }


def test_flat_names_are_ones_that_mlflow_takes() -> None:
    from mlflow.utils.validation import _validate_metric_name

    flat = metrics.flat_metrics(_summary(), prefix="val")
    assert flat["val/dsc_strict/spleen_left"] == 1.0
    for name in flat:
        _validate_metric_name(name)


def test_case_table_has_a_row_for_every_case_and_class() -> None:
    pred = np.array([[1, 2]], np.uint8)
    rows = metrics.case_rows({"x": metrics.score_case(pred, pred, 3)}, ["background", "a", "b"])
    assert [(row["case"], row["class"], row["dsc_strict"]) for row in rows] == [
        ("x", "a", 1.0),
        ("x", "b", 1.0),
    ]
