"""What a sweep is to make better, and what its networks may cost at most."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field

from rwkvctl.base.errors import UserError
from rwkvctl.base.suggestions import did_you_mean
from rwkvctl.config.specs.base import Spec

Direction = Literal["maximize", "minimize"]
SCORES = ("dsc_strict", "dsc_official", "hd95_vox_strict", "hd95_vox_official")
"""Of the best weights on the validation part, at a trial's end."""
MORE_SCORES = (
    *("hd95_mm_strict", "hd95_max_vox_strict", "hd95_max_mm_strict", "iou_strict", "precision_strict"),
    *("sensitivity_strict", "volume_difference_strict", "volume_difference_ml_strict", "assd_vox_strict"),
    *("assd_mm_strict", "nsd_vox_strict", "nsd_mm_strict"),
)
"""The same, but the table of a sweep has them only where they are an objective; those in mm or ml need a spacing."""
SIZES = ("parameters", "macs_paper", "macs_true")
"""Of the network, known before a trial starts."""
TOP1 = "top1"
"""Of the best weights of a classifier on the validation part, in percent."""
LATENCY = "latency_ms"
"""Milliseconds of the network for one image, measured before a trial trains."""
TRACKED = (
    *("train/loss", "train/grad_norm", "train/images_per_second", "train/seconds_per_step", "train/data_wait"),
    "train/peak_memory_bytes",
)
PARTS = ("val", "val_ema", "best_val")
"""`val/dsc_strict/mean`, `val/dsc_strict/<class>`: as they are tracked."""
GROWS = ("dsc", "iou", "precision", "sensitivity", "nsd", "train/images_per_second")
WAYS: dict[str, Direction] = {"max": "maximize", "maximize": "maximize", "min": "minimize", "minimize": "minimize"}


class Objective(Spec):
    """A figure of a trial, and which way is better."""

    metric: Annotated[str, Field(min_length=1)]
    direction: Direction

    @property
    def sign(self) -> int:
        """1 where less is better, else -1."""
        return 1 if self.direction == "minimize" else -1

    @property
    def validation_metric(self) -> str | None:
        """The tracked metric by which it is known while a trial trains; None if that is at the end only."""
        if self.metric in ("dsc_strict", "dsc_official"):
            return f"val/{self.metric}/mean"
        return self.metric if self.metric.startswith(("val/", "val_ema/")) else None


class Bound(Spec):
    """The most that a network may have of a figure."""

    figure: Literal["parameters", "macs_paper", "macs_true"]
    most: Annotated[float, Field(gt=0, allow_inf_nan=False)]


def parse_objective(text: str) -> Objective:
    """`dsc_strict`, `macs_paper:min`; UserError for a metric that no trial has."""
    metric, _, way = text.partition(":")
    scored = metric.partition("/")[0] in PARTS and metric.count("/") == 2 and metric.split("/")[1] in SCORES
    best_mean = re.fullmatch(r"best_val/(\w+)/mean", metric)
    scored = scored or (best_mean is not None and best_mean[1] in MORE_SCORES)
    known = (*SCORES, *MORE_SCORES, *SIZES, LATENCY, *TRACKED)
    if not scored and metric not in known:
        hint = did_you_mean(
            metric, known, "known: " + ", ".join((*SCORES, "iou_strict", *SIZES, LATENCY, "val/dsc_strict/CLASS"))
        )
        raise UserError(f"--objective {text}: no trial has a metric {metric!r} ({hint})")
    if way not in ("", *WAYS):
        raise UserError(f"--objective {text}: must end with :max or :min")
    figure = metric.split("/")[1] if scored else metric
    return Objective(
        metric=metric, direction=WAYS[way] if way else "maximize" if figure.startswith(GROWS) else "minimize"
    )


def parse_bound(text: str) -> Bound:
    """`parameters<=5e6`."""
    found = re.fullmatch(r"\s*(\w+)\s*<=\s*(\S+)\s*", text)
    try:
        if found and found[1] in SIZES and float(found[2]) > 0:
            return Bound(figure=found[1], most=float(found[2]))
    except ValueError:
        pass
    raise UserError(f"--constraint {text!r}: must be FIGURE<=NUMBER with one of {', '.join(SIZES)}, as parameters<=5e6")
