"""What a sweep may be asked to make better, and what is refused before anything starts."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from rwkvctl.base.errors import UserError
from rwkvctl.cli import assemble
from rwkvctl.config.specs import load
from rwkvctl.config.specs.jobs import TuneSpec
from rwkvctl.config.specs.objectives import parse_bound, parse_objective

ENDLESS = {"loss.alpha": {"float": [0.0, 1.0]}}


@pytest.mark.parametrize(
    ("text", "metric", "direction"),
    [
        ("dsc_strict", "dsc_strict", "maximize"),
        ("hd95_vox_strict", "hd95_vox_strict", "minimize"),
        ("macs_paper:min", "macs_paper", "minimize"),
        ("latency_ms", "latency_ms", "minimize"),
        ("val/dsc_strict/liver", "val/dsc_strict/liver", "maximize"),
        ("train/loss", "train/loss", "minimize"),
        ("train/images_per_second", "train/images_per_second", "maximize"),
        ("parameters:max", "parameters", "maximize"),
        ("iou_strict", "iou_strict", "maximize"),
        ("nsd_mm_strict", "nsd_mm_strict", "maximize"),
        ("sensitivity_strict", "sensitivity_strict", "maximize"),
        ("precision_strict", "precision_strict", "maximize"),
        ("assd_mm_strict", "assd_mm_strict", "minimize"),
        ("volume_difference_strict", "volume_difference_strict", "minimize"),
        ("best_val/assd_vox_strict/mean", "best_val/assd_vox_strict/mean", "minimize"),
    ],
)
def test_objectives(text: str, metric: str, direction: str):
    found = parse_objective(text)
    assert (found.metric, found.direction) == (metric, direction)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("dsc", "--objective dsc: no trial has a metric 'dsc'"),
        ("dsc_stric", "--objective dsc_stric: no trial has a metric 'dsc_stric' (did you mean dsc_strict"),
        ("val/iou_strict/mean", "--objective val/iou_strict/mean: no trial has a metric"),
        ("val/iou/mean", "--objective val/iou/mean: no trial has a metric"),
        ("macs_paper:down", "--objective macs_paper:down: must end with :max or :min"),
    ],
)
def test_an_objective_that_no_trial_has_is_one_line(text: str, said: str):
    with pytest.raises(UserError) as caught:
        parse_objective(text)
    assert str(caught.value).startswith(said)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("text", ["parameters", "parameters<5e6", "latency_ms<=3", "parameters<=x", "parameters<=-1"])
def test_a_constraint_that_cannot_be_checked_is_one_line(text: str):
    with pytest.raises(UserError, match="must be FIGURE<=NUMBER with one of parameters, macs_paper, macs_true"):
        parse_bound(text)
    assert parse_bound("parameters<=5e6").most == 5e6


def spec(recipe: str = "binary", **fields: Any) -> TuneSpec:
    base = load.merge(load.read_recipe(recipe), {"data": {"path": "nowhere", "dataset": "polyps"}})
    own = {"space_name": "own", "space": {"params": ENDLESS}, "base": base, "trials": 4}
    fields["objectives"] = [parse_objective(text).model_dump() for text in fields.get("objectives", [])]
    return load.build(TuneSpec, own | fields, "space own")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"recipe": "synapse", "pruner": "asha"}, "pruner asha: the recipe never validates; set train.validate_"),
        ({"pruner": "asha", "objectives": ["hd95_vox_strict"]}, "hd95_vox_strict is not known before a trial ends"),
        ({"pruner": "asha", "objectives": ["parameters"]}, "pruner asha: no objective changes while a trial trains"),
        ({"pruner": "median", "objectives": ["dsc_strict", "parameters"]}, "pruner median: is for one objective; with"),
        ({"sampler": "cmaes", "objectives": ["dsc_strict", "parameters"]}, "sampler cmaes: is for one objective; use"),
        ({"sampler": "nsga3"}, "sampler nsga3: is for several objectives; use tpe, gp or cmaes"),
        ({"sampler": "grid"}, "sampler grid: is for finite spaces, and params.loss.alpha is a range of floats"),
        ({"sampler": "tpee"}, "sampler: input should be 'tpe', 'random'"),
        ({"objectives": ["dsc_strict", "dsc_strict:min"]}, "objectives: dsc_strict appears twice"),
        ({"gpus_per_trial": 1.5}, "gpus_per_trial 1.5: a worker uses one GPU; set cluster.workers for more"),
        ({"gpus_per_trial": 0}, "gpus_per_trial: input should be greater than 0"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_one_line_before_anything_starts(fields: dict[str, Any], said: str):
    with pytest.raises(UserError) as caught:
        spec(**fields)
    assert said in str(caught.value)
    assert len(str(caught.value)) < 300


def test_sweeps_of_before_are_read_as_they_were():
    old = spec().model_dump(mode="json", by_alias=True)
    for field in ("objectives", "sampler", "pruner", "constraints", "warm_start", "gpus_per_trial"):
        del old[field]
    found = TuneSpec.model_validate(old)
    assert [(goal.metric, goal.direction) for goal in found.goals] == [("dsc_strict", "maximize")]
    assert (found.chosen_by, found.pruner) == ("tpe", "none")
    with pytest.raises(ValidationError):
        TuneSpec.model_validate(old | {"pruner": "x"})


def test_a_study_is_a_database_or_a_journal_file():
    assert assemble.study_place("sqlite:////x/y.db") == "sqlite:////x/y.db"
    assert (assemble.study_place("sweep.log") or "").startswith("/")
    with pytest.raises(UserError, match="--study sweep: must be the URL of a database, or a journal file"):
        assemble.study_place("sweep")
