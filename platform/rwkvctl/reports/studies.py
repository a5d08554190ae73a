"""A study's table: parameters and MACs of every row at once, and the scores of the runs that trained it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from rwkvctl.config.specs.changes import flatten
from rwkvctl.config.specs.jobs import FinetuneSpec
from rwkvctl.config.specs.study import PaperFigures, RowSpec, StudySpec, assignments, row_spec

if TYPE_CHECKING:
    from rwkvctl.registry.versions import Version

DSC, HD95 = "test/dsc_official/mean", "test/hd95_vox_official/mean"
"""The paper's own convention, so that its column and ours can be compared."""
BUDGET = ("train.epochs", "train.batch_size", "data.split")
"""Fields beside a row's own by which runs are told apart: their means are not mixed."""


@dataclass(frozen=True)
class Score:
    """Means and standard deviations over the tracked runs of a row on one data set, DSC in %, HD95 in voxels."""

    dsc: float
    hd95: float | None
    runs: int
    dsc_deviation: float | None = None
    """Null for one run."""
    hd95_deviation: float | None = None
    epochs: int | None = None
    """The budget of these runs; those of a smaller one are left out."""
    differs: tuple[str, ...] = ()
    """What keeps the figures from being compared with the paper's: another budget, another split than the recipe's."""


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
    fitting = [
        (fields, version.metrics)
        for version in versions
        if DSC in version.metrics and (fields := _trained_as(version, dataset, wanted, paths)) is not None
    ]
    if not fitting:
        return None
    budgets = [tuple(fields.get(path) for path in BUDGET) for fields, _ in fitting]
    budget = max(set(budgets), key=lambda each: (each[0] or 0, budgets.count(each), str(each)))
    found = [metrics for (_, metrics), each in zip(fitting, budgets, strict=True) if each == budget]
    dsc, hd95 = ([metrics[name] for metrics in found if name in metrics] for name in (DSC, HD95))
    differs = [f"{path} {own}, not {wanted.get(path)}" for path, own in zip(BUDGET, budget, strict=True)
               if own != wanted.get(path)]  # fmt: skip
    return Score(
        dsc=100 * fmean(dsc),
        hd95=fmean(hd95) if hd95 else None,
        runs=len(found),
        dsc_deviation=100 * stdev(dsc) if len(dsc) > 1 else None,
        hd95_deviation=stdev(hd95) if len(hd95) > 1 else None,
        epochs=budget[0],
        differs=tuple(differs),
    )


def _trained_as(
    version: Version, dataset: str, wanted: Mapping[str, Any], paths: Sequence[str]
) -> dict[str, Any] | None:
    """The flat spec of a version that was trained as a row says, else None."""
    try:
        spec = FinetuneSpec.model_validate_json(version.tags["spec"])
    except ValidationError:  # a pretraining's, or of another version of this program
        return None
    fields = flatten(spec.model_dump(mode="json"))
    same = spec.data.dataset == dataset and all(fields.get(path) == wanted.get(path) for path in paths)
    return fields if same else None
