"""DSC and HD95 of segmentations, per class and case, in two conventions that are never mixed.

`official` is what the authors' code computes and so what their tables show: an empty prediction scores
DSC 0 and HD95 0, even where the truth is empty too; a prediction where the truth is empty scores DSC 1 and
HD95 0; HD95 is in voxels (the paper prints mm).

`strict` counts nothing that has no answer: where both are empty the case is left out; where one is empty
the DSC is 0 and HD95 does not exist, which is counted as `undefined_hd95`. HD95 is in voxels and, where the
spacing is known, in mm.

HD95 itself is defined in two ways. `hd95_...` is medpy's, as in the authors' code: the 95th percentile of the distances
from either surface to the other, pooled. `hd95_max_...` is that of MONAI and MetricsReloaded: the larger of the two
directed percentiles. It can be several times the first.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rwkvctl.base.errors import UserError
from rwkvctl.training.hausdorff import bounding_box, hausdorff95

Note = Literal["", "both empty", "empty prediction", "empty truth"]

# The name of each figure as it is shown and logged, and the field of ClassScore that it averages.
FIGURES = {
    "dsc_official": "official_dsc",
    "hd95_vox_official": "official_hd95",
    "dsc_strict": "strict_dsc",
    "hd95_vox_strict": "strict_hd95_vox",
    "hd95_mm_strict": "strict_hd95_mm",
    "hd95_max_vox_strict": "strict_hd95_max_vox",
    "hd95_max_mm_strict": "strict_hd95_max_mm",
}


@dataclass(frozen=True)
class ClassScore:
    """One class of one case. `None`: not counted, as no answer exists or was asked for, or mm without spacing."""

    class_id: int
    official_dsc: float
    official_hd95: float | None
    strict_dsc: float | None
    strict_hd95_vox: float | None
    strict_hd95_mm: float | None
    note: Note = ""
    strict_hd95_max_vox: float | None = None
    strict_hd95_max_mm: float | None = None


def score_case(
    pred: NDArray[Any],
    truth: NDArray[Any],
    num_classes: int,
    spacing_mm: Sequence[float] | None = None,
    *,
    hd95: bool = True,
    ignore_index: int | None = None,
) -> list[ClassScore]:
    """Score one image or volume, class by class; class 0 is the background and is left out.

    Args:
        pred, truth: labels, (H, W) or (D, H, W), of the same shape.
        num_classes: including the background; a binary mask has 2.
        spacing_mm: size of a voxel along each axis of the arrays, in mm.
        hd95: without it only DSC is computed, which is much faster.
        ignore_index: pixels of `truth` with this value count neither way.
    """
    _check_case(pred, truth, spacing_mm)
    if ignore_index is not None:
        ignored = truth == ignore_index
        pred, truth = np.where(ignored, 0, pred), np.where(ignored, 0, truth)
    foreground = (pred != 0) | (truth != 0)
    box = bounding_box(foreground) if foreground.any() else (slice(0),)
    pred, truth = pred[box], truth[box]  # a volume is mostly air
    return [_score_class(pred == c, truth == c, c, spacing_mm, hd95) for c in range(1, num_classes)]


def _check_case(pred: NDArray[Any], truth: NDArray[Any], spacing_mm: Sequence[float] | None) -> None:
    if pred.shape != truth.shape or pred.ndim not in (2, 3):
        raise UserError(
            f"prediction {pred.shape} and truth {truth.shape} must have one shape, (H, W) or (D, H, W): "
            "bring the prediction to the native resolution of the case"
        )
    if spacing_mm is not None and (len(spacing_mm) != pred.ndim or min(spacing_mm) <= 0):
        raise UserError(f"spacing_mm {tuple(spacing_mm)} must have one positive value for each axis of {pred.shape}")


def _score_class(
    pred: NDArray[np.bool_],
    truth: NDArray[np.bool_],
    class_id: int,
    spacing_mm: Sequence[float] | None,
    hd95: bool,
) -> ClassScore:
    has_pred, has_truth = bool(pred.any()), bool(truth.any())
    zero = 0.0 if hd95 else None
    if not has_pred and not has_truth:
        return ClassScore(class_id, 0.0, zero, None, None, None, "both empty")
    if not has_pred:
        return ClassScore(class_id, 0.0, zero, 0.0, None, None, "empty prediction")
    if not has_truth:
        return ClassScore(class_id, 1.0, zero, 0.0, None, None, "empty truth")
    dsc = dice(pred, truth)
    if not hd95:
        return ClassScore(class_id, dsc, None, dsc, None, None)
    voxels, mm = hausdorff95(pred, truth, spacing_mm)
    return ClassScore(
        class_id,
        official_dsc=dsc,
        official_hd95=voxels.pooled,
        strict_dsc=dsc,
        strict_hd95_vox=voxels.pooled,
        strict_hd95_mm=mm.pooled if mm else None,
        strict_hd95_max_vox=voxels.largest,
        strict_hd95_max_mm=mm.largest if mm else None,
    )


def dice(pred: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """2 |P and T| / (|P| + |T|) of two masks that are not both empty."""
    both = np.count_nonzero(pred & truth)
    return float(2.0 * both / (np.count_nonzero(pred) + np.count_nonzero(truth)))


def summarise(cases: Mapping[str, Sequence[ClassScore]], classes: Sequence[str]) -> dict[str, Any]:
    """Average over cases for each class, then over classes, as the authors do.

    Args:
        cases: scores by case key, as `score_case` returns them.
        classes: names by class id, the background first.

    Returns:
        A dictionary ready for JSON: `cases` (how many), `classes` (by name) and `mean`, these two with the
        figures of `FIGURES` (None where no case has a value) and three counts: `both_empty` (left out of
        every strict figure), `undefined_hd95` (one of the two is empty: left out of strict HD95) and
        `no_spacing` (left out of mm only).
    """
    by_class = {
        name: _summarise_class([s for scores in cases.values() for s in scores if s.class_id == class_id])
        for class_id, name in enumerate(classes)
        if class_id > 0
    }
    mean: dict[str, Any] = {figure: _mean(one[figure] for one in by_class.values()) for figure in FIGURES}
    for count in ("both_empty", "undefined_hd95", "no_spacing"):
        mean[count] = sum(one[count] for one in by_class.values())
    return {"cases": len(cases), "classes": by_class, "mean": mean}


def _summarise_class(scores: list[ClassScore]) -> dict[str, Any]:
    found: dict[str, Any] = {
        figure: _mean(getattr(score, field) for score in scores) for figure, field in FIGURES.items()
    }
    found["both_empty"] = sum(s.note == "both empty" for s in scores)
    found["undefined_hd95"] = sum(s.note in ("empty prediction", "empty truth") for s in scores)
    found["no_spacing"] = sum(s.strict_hd95_vox is not None and s.strict_hd95_mm is None for s in scores)
    return found


def _mean(values: Iterable[float | None]) -> float | None:
    counted = [value for value in values if value is not None]
    return fmean(counted) if counted else None


def case_rows(cases: Mapping[str, Sequence[ClassScore]], classes: Sequence[str]) -> list[dict[str, Any]]:
    """The per-case table: a row for every case and class, its columns named like the summary's figures."""
    return [
        {"case": key, "class": classes[score.class_id]}
        | {figure: getattr(score, field) for figure, field in FIGURES.items()}
        | {"note": score.note}
        for key, scores in cases.items()
        for score in scores
    ]


def flat_metrics(summary: Mapping[str, Any], prefix: str = "test") -> dict[str, float]:
    """A summary, less its Nones, for tracking: `test/dsc_strict/mean`, `test/dsc_strict/<class>`, ..."""
    named = {"mean": summary["mean"]}
    for position, (name, figures) in enumerate(summary["classes"].items(), start=1):
        label = metric_name_part(name) or "class"
        # Two classes whose names differ only in what MLflow does not allow must not share a metric.
        named[label if label not in named else f"{label}_{position}"] = figures
    return {
        f"{prefix}/{figure}/{label}": figures[figure]
        for figure in FIGURES
        for label, figures in named.items()
        if figures[figure] is not None
    }


def tracked(summary: Mapping[str, Any], prefix: str) -> dict[str, float]:
    """The scores of a run's `summary.json` under the names that tracking and registry have them by.

    summary: of a segmentation model as `summarise` returns it, or with `top1` and `top5` of a classifier.
    """
    if "classes" in summary:
        return flat_metrics(summary, prefix)
    return {f"{prefix}/{key}": summary[key] for key in ("top1", "top5") if key in summary}


def metric_name_part(text: str) -> str:
    """`text` as one part of an MLflow metric name: letters, digits, `_-.` and spaces; no nesting slash."""
    return re.sub(r"[^0-9A-Za-z_\-. ]+", "_", text).strip(" .")[:120]
