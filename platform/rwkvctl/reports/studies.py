"""A study's table: parameters and MACs of every row at once, and the scores of the runs that trained it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from rwkvctl.config.specs.changes import flatten
from rwkvctl.config.specs.jobs import FinetuneSpec
from rwkvctl.config.specs.study import PaperFigures, RowSpec, StudySpec, assignments, row_spec

if TYPE_CHECKING:
    from rwkvctl.registry.versions import Version

DSC, HD95 = "test/dsc_official/mean", "test/hd95_vox_official/mean"
"""The paper's own convention, so that its column and ours can be compared."""


@dataclass(frozen=True)
class Score:
    """Means over the tracked runs of a row on one data set, DSC in %, HD95 in voxels."""

    dsc: float
    hd95: float | None
    runs: int


@dataclass(frozen=True)
class Row:
    """A row of a report. What is only cited has no parameters and no MACs; what was not trained has no scores."""

    label: str
    paper: PaperFigures
    parameters: int | None = None
    macs: int | None = None
    scores: dict[str, Score] = field(default_factory=dict)


def command(study: StudySpec, row: RowSpec, dataset: str) -> str:
    """What trains a row on a data set."""
    words = ["rwkvctl", "finetune", dataset]
    for path, value in assignments(study, row).items():
        words += ["--set", f"{path}={value if isinstance(value, str) else json.dumps(value)}"]
    return shlex.join(words)


def report(study: StudySpec, versions: Sequence[Version]) -> list[Row]:
    """Every row with its parameters and MACs, and its scores among the registered `versions`."""
    return [_row(study, row, versions) for row in study.rows]


def _row(study: StudySpec, row: RowSpec, versions: Sequence[Version]) -> Row:
    if row.set is None:
        return Row(row.label, row.paper)
    import torch

    from rwkv_unet.flops import count_parameters
    from rwkvctl.models import build as networks

    spec = row_spec(study, row, study.datasets[0])
    with torch.device("meta"):
        model = networks.network(spec.model, study.num_classes)
    macs = networks.macs(model, spec.model.name, (3, study.image_size, study.image_size)).paper
    scores = {dataset: _score(study, row, dataset, versions) for dataset in study.datasets}
    found = {dataset: score for dataset, score in scores.items() if score is not None}
    return Row(row.label, row.paper, count_parameters(model), macs, found)


def _score(study: StudySpec, row: RowSpec, dataset: str, versions: Sequence[Version]) -> Score | None:
    """The mean over all versions that were trained as the row says (its model, and what it sets) and evaluated."""
    wanted = flatten(row_spec(study, row, dataset).model_dump(mode="json"))
    paths = [path for path in wanted if path.startswith("model.")] + list(assignments(study, row))
    found = [v.metrics for v in versions if DSC in v.metrics and _trained_as(v, dataset, wanted, paths)]
    if not found:
        return None
    hd95 = [metrics[HD95] for metrics in found if HD95 in metrics]
    return Score(100 * fmean(metrics[DSC] for metrics in found), fmean(hd95) if hd95 else None, len(found))


def _trained_as(version: Version, dataset: str, wanted: Mapping[str, Any], paths: Sequence[str]) -> bool:
    try:
        spec = FinetuneSpec.model_validate_json(version.tags["spec"])
    except ValidationError:  # a pretraining's, or of another version of this program
        return False
    fields = flatten(spec.model_dump(mode="json"))
    return spec.data.dataset == dataset and all(fields.get(path) == wanted.get(path) for path in paths)
