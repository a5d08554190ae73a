"""Editors are given schemas that take what the command line takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from rwkvctl.base.errors import UserError
from rwkvctl.cli import recipe
from rwkvctl.config.specs import load
from rwkvctl.config.specs.schema import FILES, schema
from rwkvctl.config.specs.study import study_names

jsonschema = pytest.importorskip("jsonschema")
SHIPPED = [
    *[(load.read_recipe(name)["job"], f"recipes/{name}.yaml") for name in load.recipe_names()],
    *[("space", f"spaces/{name}.yaml") for name in load.space_names()],
    *[("study", f"studies/{name}.yaml") for name in study_names()],
]


def mistakes(kind: str | None, content: dict[str, Any]) -> list[str]:
    """The paths of what the schema of a kind complains about."""
    validator = jsonschema.Draft202012Validator(schema(kind))
    return [".".join(map(str, error.absolute_path)) for error in validator.iter_errors(content)]


@pytest.mark.parametrize("kind", [None, *FILES])
def test_a_schema_is_one(kind: str | None, capsys: pytest.CaptureFixture[str]):
    recipe.schema(kind)
    jsonschema.Draft202012Validator.check_schema(json.loads(capsys.readouterr().out))


@pytest.mark.parametrize(("kind", "path"), SHIPPED)
def test_every_shipped_file_is_valid(kind: str, path: str):
    content = load.read_yaml(load.job_folder() / path)
    assert mistakes(kind, content) == []
    assert mistakes(None, content) == []


@pytest.mark.parametrize("name", load.recipe_names())
def test_every_recipe_is_valid_when_it_is_written_out(name: str):
    spec = load.load_recipe(name)
    assert mistakes(spec.job, yaml.safe_load(load.dump(spec))) == []


def test_fields_are_explained_where_they_are_written():
    fields = schema("finetune")["$defs"]["ModelSpec"]["properties"]
    assert fields["num_skips"]["description"] == "Skip connections kept, shallow ones first (Table XII)."
    assert fields["num_skips"]["maximum"] == 3


WHOLE = {
    "job": "finetune",
    "data": {"path": "shards"},
    "optimizer": {"lr": 0.001},
    "train": {"epochs": 3, "batch_size": 8},
}


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({}, None),
        ({"model": {"ccm_hidden": 3}}, None),  # the short spelling that --set takes too
        ({"model": {"num_skips": 4}}, "model.num_skips"),
        ({"model": {"attention": "mhsaa"}}, "model.attention"),
        ({"model": {"skips": 3}}, "model"),
        ({"train": {"epochs": 3}}, "train"),  # no batch size
        ({"trian": {}}, ""),
        ({"job": "finetuen"}, "job"),
    ],
)
def test_a_mistake_is_found_where_it_is(change: dict[str, Any], path: str | None):
    assert mistakes("finetune", WHOLE | change) == ([] if path is None else [path])


def test_a_recipe_on_top_of_another_may_leave_out_anything_but_not_misspell():
    assert mistakes("finetune", {"base": "acdc", "train": {"epochs": 7}}) == []
    assert mistakes("finetune", {"base": "acdc", "train": {"epoch": 7}}) == ["train"]
    assert mistakes("finetune", {"base": "acdc", "train": {"epochs": 0}}) == ["train.epochs"]
    assert mistakes("finetune", {"train": {"epochs": 7, "batch_size": 8}}) == ["", "", ""]  # job, data, optimizer


def test_a_file_of_no_kind_is_a_mistake():
    assert mistakes(None, {"colour": "red"}) == [""]


def test_an_unknown_kind_is_said(tmp_path: Path):
    with pytest.raises(UserError, match=r"kind of file 'finetun' is unknown: did you mean finetune\?"):
        schema("finetun")
