"""Figures of segmentations, per class and case, in two conventions that are never mixed.

`official` is what the authors' code computes and so what their tables show: an empty prediction scores
DSC 0 and HD95 0, even where the truth is empty too; a prediction where the truth is empty scores DSC 1 and
HD95 0; HD95 is in voxels (the paper prints mm).

`strict` counts nothing that has no answer: where both are empty the case is left out; where one is empty
DSC, IoU and NSD are 0, and the distances do not exist, which is counted as `undefined_hd95`. Precision does not exist
where the prediction is empty (`empty_prediction`), sensitivity and the relative difference of volumes where the truth
is (`empty_truth`). Distances are in voxels and, where the spacing is known, in mm.

HD95 itself is defined in two ways. `hd95_...` is medpy's, as in the authors' code: the 95th percentile of the distances
from either surface to the other, pooled. `hd95_max_...` is that of MONAI and MetricsReloaded: the larger of the two
directed percentiles. It can be several times the first.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rwkvctl.base.errors import UserError
from rwkvctl.training.lesions import Lesions, match_lesions
from rwkvctl.training.surfaces import bounding_box, surface_distances

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
    "iou_strict": "strict_iou",
    "precision_strict": "strict_precision",
    "sensitivity_strict": "strict_sensitivity",
    "volume_difference_strict": "strict_volume_difference",
    "volume_difference_ml_strict": "strict_volume_difference_ml",
    "assd_vox_strict": "strict_assd_vox",
    "assd_mm_strict": "strict_assd_mm",
    "nsd_vox_strict": "strict_nsd_vox",
    "nsd_mm_strict": "strict_nsd_mm",
}
LESION_FIGURES = {
    "lesion_f1_strict": "lesion_f1",
    "lesion_precision_strict": "lesion_precision",
    "lesion_recall_strict": "lesion_recall",
}
"""Only where lesions are counted."""
LESION_COUNTS = {"lesions": "true", "lesions_predicted": "predicted", "lesions_found": "found"}
"""Name of each count, and its field of `Lesions`."""
COUNTS = ("both_empty", "undefined_hd95", "empty_prediction", "empty_truth", "no_spacing")
TRACKED_BY_CLASS = ("dsc_", "hd95_")
"""Beginnings of the figures that are tracked class by class; of the others only the mean: a run's metrics stay few."""


@dataclass(frozen=True)
class Choices:
    """What a figure depends on beside the masks."""

    tolerance_mm: float = 1.0
    """Up to which distance a contour counts as right in `nsd_mm_strict`."""
    tolerance_vox: float = 2.0
    lesions: bool = False
    """Whether connected components are counted and matched."""

    def figures(self) -> dict[str, str]:
        """`FIGURES`, with an NSD of another tolerance under another name, so that nothing compares the two:
        `nsd_mm_strict_at_3`."""
        usual = Choices()
        renamed = {
            "nsd_mm_strict": _at("nsd_mm_strict", self.tolerance_mm, usual.tolerance_mm),
            "nsd_vox_strict": _at("nsd_vox_strict", self.tolerance_vox, usual.tolerance_vox),
        }
        names = {renamed.get(figure, figure): field for figure, field in FIGURES.items()}
        return names | (LESION_FIGURES if self.lesions else {})


def _at(figure: str, tolerance: float, usual: float) -> str:
    return figure if tolerance == usual else f"{figure}_at_{tolerance:g}"


USUAL = Choices()


@dataclass(frozen=True)
class ClassScore:
    """One class of one case. `None`: not counted, as no answer exists or was asked for, or mm without spacing."""

    class_id: int
    official_dsc: float
    official_hd95: float | None
    strict_dsc: float | None
    strict_hd95_vox: float | None = None
    strict_hd95_mm: float | None = None
    note: Note = ""
    strict_hd95_max_vox: float | None = None
    strict_hd95_max_mm: float | None = None
    strict_iou: float | None = None
    strict_precision: float | None = None
    strict_sensitivity: float | None = None
    strict_volume_difference: float | None = None
    """|predicted - true| as a share of the true volume."""
    strict_volume_difference_ml: float | None = None
    """The same in ml, of volumes with a spacing."""
    strict_assd_vox: float | None = None
    strict_assd_mm: float | None = None
    strict_nsd_vox: float | None = None
    strict_nsd_mm: float | None = None
    lesions: Lesions | None = None

    def in_words(self) -> str:
        """DSC and HD95, strict, for a caption."""
        if self.strict_dsc is None:
            return "in neither mask"
        said = f"DSC {self.strict_dsc:.3f}"
        if self.strict_hd95_mm is not None:
            return f"{said}, HD95 {self.strict_hd95_mm:.1f} mm"
        if self.strict_hd95_vox is not None:
            return f"{said}, HD95 {self.strict_hd95_vox:.1f} px"
        return f"{said}, {self.note}" if self.note else said

    @property
    def lesion_f1(self) -> float | None:
        return self.lesions.f1 if self.lesions else None

    @property
    def lesion_precision(self) -> float | None:
        return self.lesions.precision if self.lesions else None

    @property
    def lesion_recall(self) -> float | None:
        return self.lesions.recall if self.lesions else None


def score_case(
    pred: NDArray[Any],
    truth: NDArray[Any],
    num_classes: int,
    spacing_mm: Sequence[float] | None = None,
    *,
    hd95: bool = True,
    ignore_index: int | None = None,
    choices: Choices = USUAL,
    regions: Sequence[Sequence[int]] = (),
) -> list[ClassScore]:
    """Score one image or volume, class by class; class 0 is the background and is left out.

    Args:
        pred, truth: labels, (H, W) or (D, H, W), of the same shape.
        num_classes: including the background; a binary mask has 2.
        spacing_mm: size of a voxel along each axis of the arrays, in mm.
        hd95: without it only DSC is computed, which is much faster.
        ignore_index: pixels of `truth` with this value count neither way.
        choices: tolerances of NSD, and whether lesions are counted.
        regions: the classes of each, where regions are scored in the place of classes, with ids from 1 on.
    """
    _check_case(pred, truth, spacing_mm)
    if ignore_index is not None:
        ignored = truth == ignore_index
        pred, truth = np.where(ignored, 0, pred), np.where(ignored, 0, truth)
    foreground = (pred != 0) | (truth != 0)
    box = bounding_box(foreground) if foreground.any() else (slice(0),)
    pred, truth = pred[box], truth[box]  # a volume is mostly air
    wanted = regions or [(c,) for c in range(1, num_classes)]
    return [
        _score_class(_of_any(pred, own), _of_any(truth, own), place, spacing_mm, hd95, choices)
        for place, own in enumerate(wanted, start=1)
    ]


def _of_any(labels: NDArray[Any], classes: Sequence[int]) -> NDArray[np.bool_]:
    """Where labels are of one of the classes."""
    return np.asarray(labels == classes[0] if len(classes) == 1 else np.isin(labels, classes))


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
    choices: Choices,
) -> ClassScore:
    sizes = _Sizes(*(int(np.count_nonzero(mask)) for mask in (pred, truth, pred & truth)))
    zero = 0.0 if hd95 else None
    if not sizes.pred and not sizes.truth:
        lesions = Lesions(0, 0, 0) if choices.lesions and hd95 else None
        return ClassScore(class_id, 0.0, zero, None, note="both empty", lesions=lesions)
    dsc = sizes.dice()
    if not hd95:
        note: Note = "" if sizes.both_there else "empty truth" if sizes.pred else "empty prediction"
        return ClassScore(class_id, sizes.official_dice(), None, dsc, note=note)
    score = ClassScore(
        class_id,
        official_dsc=sizes.official_dice(),
        official_hd95=zero,
        strict_dsc=dsc,
        strict_iou=sizes.both / (sizes.pred + sizes.truth - sizes.both),
        strict_precision=sizes.both / sizes.pred if sizes.pred else None,
        strict_sensitivity=sizes.both / sizes.truth if sizes.truth else None,
        strict_volume_difference=abs(sizes.pred - sizes.truth) / sizes.truth if sizes.truth else None,
        strict_volume_difference_ml=sizes.difference_ml(spacing_mm),
        lesions=match_lesions(pred, truth) if choices.lesions else None,
    )
    if not sizes.both_there:
        return replace(
            score,
            note="empty truth" if sizes.pred else "empty prediction",
            strict_nsd_vox=0.0,
            strict_nsd_mm=None if spacing_mm is None else 0.0,
        )
    return replace(score, **_of_surfaces(pred, truth, spacing_mm, choices))


class _Sizes(NamedTuple):
    """Voxels of the prediction, of the truth, and of both at once."""

    pred: int
    truth: int
    both: int

    @property
    def both_there(self) -> bool:
        return bool(self.pred and self.truth)

    def dice(self) -> float:
        return float(2.0 * self.both / (self.pred + self.truth))

    def official_dice(self) -> float:
        return self.dice() if self.truth else 1.0

    def difference_ml(self, spacing_mm: Sequence[float] | None) -> float | None:
        """Of volumes; a picture has none."""
        if spacing_mm is None or len(spacing_mm) != 3:
            return None
        return abs(self.pred - self.truth) * math.prod(map(float, spacing_mm)) / 1000


def _of_surfaces(
    pred: NDArray[np.bool_], truth: NDArray[np.bool_], spacing_mm: Sequence[float] | None, choices: Choices
) -> dict[str, Any]:
    """The fields of ClassScore that are read from the distances between two surfaces."""
    voxels, mm = surface_distances(pred, truth, spacing_mm)
    pooled, largest = voxels.hd95()
    found = {
        "official_hd95": pooled,
        "strict_hd95_vox": pooled,
        "strict_hd95_max_vox": largest,
        "strict_assd_vox": voxels.average(),
        "strict_nsd_vox": voxels.within(choices.tolerance_vox),
    }
    if mm is not None:
        pooled, largest = mm.hd95()
        found |= {
            "strict_hd95_mm": pooled,
            "strict_hd95_max_mm": largest,
            "strict_assd_mm": mm.average(),
            "strict_nsd_mm": mm.within(choices.tolerance_mm),
        }
    return found


def summarise(
    cases: Mapping[str, Sequence[ClassScore]], classes: Sequence[str], choices: Choices = USUAL
) -> dict[str, Any]:
    """Average over cases for each class, then over classes, as the authors do.

    Args:
        cases: scores by case key, as `score_case` returns them.
        classes: names by class id, the background first.
        choices: those that the cases were scored with.

    Returns:
        A dictionary ready for JSON: `cases` (how many), `nsd_tolerance`, `classes` (by name) and `mean`, these two
        with the figures of `Choices.figures` (None where no case has a value) and counts: `both_empty` (left out of
        every strict figure), `undefined_hd95` (one of the two is empty: left out of strict distances), of which
        `empty_prediction` (left out of precision) and `empty_truth` (of sensitivity and the relative volume
        difference), and `no_spacing` (left out of mm only). Where lesions are counted, also how many there are.
    """
    figures, counts = choices.figures(), (*COUNTS, *(LESION_COUNTS if choices.lesions else ()))
    by_class = {
        name: _summarise_class([s for scores in cases.values() for s in scores if s.class_id == class_id], choices)
        for class_id, name in enumerate(classes)
        if class_id > 0
    }
    mean: dict[str, Any] = {figure: _mean(one[figure] for one in by_class.values()) for figure in figures}
    for count in counts:
        mean[count] = sum(one[count] for one in by_class.values())
    tolerance = {"mm": choices.tolerance_mm, "vox": choices.tolerance_vox}
    return {"cases": len(cases), "nsd_tolerance": tolerance, "classes": by_class, "mean": mean}


def _summarise_class(scores: list[ClassScore], choices: Choices) -> dict[str, Any]:
    found: dict[str, Any] = {
        figure: _mean(getattr(score, field) for score in scores) for figure, field in choices.figures().items()
    }
    notes = Counter(score.note for score in scores)
    found["both_empty"] = notes["both empty"]
    found["undefined_hd95"] = notes["empty prediction"] + notes["empty truth"]
    found["empty_prediction"], found["empty_truth"] = notes["empty prediction"], notes["empty truth"]
    found["no_spacing"] = sum(s.strict_hd95_vox is not None and s.strict_hd95_mm is None for s in scores)
    if choices.lesions:
        found |= {
            name: sum(getattr(score.lesions, field) for score in scores if score.lesions)
            for name, field in LESION_COUNTS.items()
        }
    return found


def _mean(values: Iterable[float | None]) -> float | None:
    counted = [value for value in values if value is not None]
    return fmean(counted) if counted else None


def case_rows(
    cases: Mapping[str, Sequence[ClassScore]], classes: Sequence[str], choices: Choices = USUAL
) -> list[dict[str, Any]]:
    """The per-case table: a row for every case and class, its columns named like the summary's figures."""
    return [
        {"case": key, "class": classes[score.class_id]}
        | {figure: getattr(score, field) for figure, field in choices.figures().items()}
        | ({name: getattr(score.lesions, field) for name, field in LESION_COUNTS.items()} if choices.lesions else {})
        | {"note": score.note}
        for key, scores in cases.items()
        for score in scores
    ]


def flat_metrics(summary: Mapping[str, Any], prefix: str = "test") -> dict[str, float]:
    """A summary, less its Nones, for tracking: `test/dsc_strict/mean`, `test/dsc_strict/<class>`, ...; of most figures
    the mean alone."""
    named = {"mean": summary["mean"]}
    for position, (name, figures) in enumerate(summary["classes"].items(), start=1):
        label = metric_name_part(name) or "class"
        # Two classes whose names differ only in what MLflow does not allow must not share a metric.
        named[label if label not in named else f"{label}_{position}"] = figures
    return {
        f"{prefix}/{figure}/{label}": figures[figure]
        for figure in figures_of(summary)
        for label, figures in named.items()
        if figures[figure] is not None and (label == "mean" or figure.startswith(TRACKED_BY_CLASS))
    }


def figures_of(summary: Mapping[str, Any]) -> list[str]:
    """The figures that a summary has, in their order."""
    return [name for name in summary["mean"] if name not in COUNTS and name not in LESION_COUNTS]


def tracked(summary: Mapping[str, Any], prefix: str) -> dict[str, float]:
    """The scores of a run's `summary.json` under the names that tracking and registry have them by.

    summary: of a segmentation model as `summarise` returns it, or with `top1` and `top5` of a classifier.
    """
    if "classes" in summary:
        calibration = summary.get("calibration") or {}
        eces = {name: calibration[name] for name in ("ece", "ece_raw") if calibration.get(name) is not None}
        return flat_metrics(summary, prefix) | {f"{prefix}/{name}/mean": value for name, value in eces.items()}
    found = {f"{prefix}/{key}": summary[key] for key in ("top1", "top5") if key in summary}
    if summary.get("task") == "classification":
        found |= {f"{prefix}/{name}/mean": value for name, value in summary["mean"].items() if value is not None}
        for label, own in summary["by_class"].items():
            figures = {name: value for name, value in own.items() if isinstance(value, float)}
            found |= {f"{prefix}/{name}/{metric_name_part(label)}": value for name, value in figures.items()}
    return found


def metric_name_part(text: str) -> str:
    """`text` as one part of an MLflow metric name: letters, digits, `_-.` and spaces; no nesting slash."""
    return re.sub(r"[^0-9A-Za-z_\-. ]+", "_", text).strip(" .")[:120]
