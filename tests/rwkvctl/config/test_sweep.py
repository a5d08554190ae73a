"""Whether a sweep space fits what it varies: a table of wrong YAML files, each with its one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rwkvctl.base.errors import UserError
from rwkvctl.config.specs import load
from rwkvctl.config.specs.jobs import TuneSpec
from rwkvctl.config.specs.sweep import check_space, trial_spec

KINDS = "must be one of {choice: [...]}, {int: [low, high]} and {float: [low, high]}"
WRONG = [
    ("params: {}", "params: must not be empty"),
    ("params: []", "params: must be a mapping of fields, got []"),
    ("params: {seed: {choice: [1]}}\ncover: maybe", "cover: input should be a valid boolean"),
    ("parms: {seed: {choice: [1]}}", "2 problems: params: missing; parms: unknown field (did you mean params?)"),
    ("params: {3: {choice: [1]}}", "params.3: must be the path of a field, as train.epochs"),
    ("params: {seed: 3}", f"params.seed: {KINDS}, got 3"),
    ("params: {seed: [1, 2]}", f"params.seed: {KINDS}, got [1, 2]"),
    ("params: {seed: {}}", f"params.seed: {KINDS}"),
    ("params: {seed: {choise: [1]}}", f"params.seed: {KINDS}"),
    ("params: {seed: {int: [1, 4], float: [1, 2]}}", f"params.seed: {KINDS}"),
    ("params: {seed: {choice: 3}}", "params.seed.choice: must be a list, got 3"),
    ("params: {seed: {choice: []}}", "params.seed.choice: must not be empty"),
    ("params: {seed: {choice: [1, 2, 1]}}", "params.seed: 1 appears twice"),
    ("params: {seed: {choice: [true, 1]}}", "params.seed: true and 1 are one value"),
    ("params: {seed: {int: [1]}}", "params.seed.int.1: missing"),
    ("params: {seed: {int: [1, x]}}", "params.seed.int.1: input should be a valid integer"),
    ("params: {seed: {int: [4, 1]}}", "params.seed: must be [low, high], low first"),
    ("params: {seed: {int: [1, 4], stp: 2}}", "params.seed.stp: unknown field (did you mean step?)"),
    ("params: {loss.alpha: {float: [0, 1], log: true}}", "params.loss.alpha: low must be above 0"),
    ("params: {loss.alpha: {float: [0, .inf]}}", "params.loss.alpha.float.1: input should be a finite number"),
    ("params: {loss.alpha: {float: [0.1, 1], log: true, step: 0.1}}", "params.loss.alpha: give step or log, not both"),
    ("params: {seed: {int: [0, 4], log: true}}", "params.seed: low must be above 0 on a logarithmic scale"),
    ("params: {seed: {int: [1, 4], when: {model.ccm: true}}}", "params.seed.when.model.ccm: must be a parameter that"),
    (
        "params: {model.num_skips: {int: [1, 3]}, seed: {int: [1, 4], when: {model.num_skips: 4}}}",
        "params.seed.when.model.num_skips: 4 is none of its values",
    ),
    (
        "params: {model.ccm: {choice: [true]}, seed: {int: [1, 4], when: {model.ccm: 1}}}",
        "params.seed.when.model.ccm: 1 is none of its values",
    ),
    (
        "params: {loss.alpha: {float: [0, 1]}, seed: {int: [1, 4], when: {loss.alpha: 1}}}",
        "params.seed.when.loss.alpha: is a range of floats, which hardly ever has just one value; use a choice",
    ),
    ("params: {loss.alpha: {float: [0, 1]}}\ncover: true", "cover: is for finite spaces, and params.loss.alpha is"),
    # against the spec that is varied
    ("params: {modle.ccm: {choice: [true]}}", "params.modle.ccm: modle: unknown field (did you mean model?)"),
    ("params: {model.cmm: {choice: [true]}}", "params.model.cmm: unknown field (did you mean ccm?)"),
    ("params: {model.ccm_hidden: {int: [1, 4]}}", "params.model.ccm_hidden: unknown field (did you mean ccm_hidden_ra"),
    ("params: {lr: {float: [0, 1]}}", "params.lr: unknown field"),
    ("params: {model: {choice: [rwkv_unet_t]}}", "params.model: must be a mapping of fields, got 'rwkv_unet_t'"),
    ("params: {loss: {choice: [{alpha: 1}]}}", "params.loss: {'alpha': 1} is a mapping; name the fields in it, as"),
    ("params: {train.precision: {choice: [fp32, fp64]}}", "params.train.precision: input should be 'auto', 'fp32'"),
    ("params: {model.decoder_kernel_size: {int: [3, 11]}}", "params.model.decoder_kernel_size: must be odd, got 4"),
    ("params: {loss.alpha: {float: [-1, 1]}}", "params.loss.alpha: input should be greater than or equal to 0, got -1"),
    ("params: {train.epochs: {choice: ['3']}}", "params.train.epochs: '3' would be read as 3; write it so"),
    ("params: {model.ccm: {choice: [1]}}", "params.model.ccm: 1 would be read as True; write it so"),
    ("params: {train.validate_every: {int: [0, 1]}}", "params.train.validate_every: 0 never validates"),
    ("params: {cluster.workers: {int: [1, 2]}}", "params.cluster.workers: is the same for all trials; set it with"),
    ("params: {data.path: {choice: [a, b]}}", "params.data.path: is the same for all trials; set it with --set data."),
    (
        "params: {train.epochs: {choice: [2, 9]}, optimizer.warmup_epochs: {choice: [0, 4]}}",
        "params: train.epochs=2, optimizer.warmup_epochs=4: optimizer.warmup_epochs 4 must be below train.epochs 2",
    ),
]  # fmt: skip


def base(recipe: str = "binary") -> dict[str, Any]:
    return load.merge(load.read_recipe(recipe), {"data": {"path": "nowhere", "dataset": "polyps"}})


def sweep(space: Any, recipe: str = "binary", name: str = "own") -> TuneSpec:
    return TuneSpec.model_validate({"space_name": name, "space": space, "base": base(recipe), "trials": 2})


@pytest.mark.parametrize(("text", "said"), WRONG, ids=[said[:50] for _, said in WRONG])
def test_a_wrong_space_is_one_line_in_the_terms_of_its_file(tmp_path: Path, text: str, said: str):
    path = tmp_path / "own.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        check_space(sweep(load.read_space(str(path)).model_dump()))
    line = str(caught.value).replace("own.yaml", "own")
    assert line.startswith(f"space own: {said}")
    assert len(line) < 300
    assert "\n" not in line


@pytest.mark.parametrize("name", load.space_names())
def test_every_shipped_space_fits_its_recipe_and_every_trial_is_scored(name: str):
    space = load.read_space(name)
    trials = check_space(sweep(space.model_dump(), space.recipe, name))
    assert len(trials) == (space.size() or 4)
    recipe = load.load_recipe(space.recipe).train
    assert {trial.train.validate_every for trial in trials} == {recipe.validate_every or recipe.epochs}


def test_a_recipe_that_validates_is_left_as_it_is():
    spec = sweep({"params": {"train.epochs": {"choice": [4, 5]}}}).base
    assert trial_spec(spec, {}) == spec
    assert trial_spec(spec, {"train.epochs": 5}).train.validate_every == 1


def test_the_last_weights_are_scored_where_the_recipe_never_validates():
    spec = sweep({"params": {"train.epochs": {"choice": [4, 5]}}}, "synapse").base
    assert [trial_spec(spec, {"train.epochs": n}).train.validate_every for n in (4, 5)] == [4, 5]
