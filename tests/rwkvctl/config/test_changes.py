"""What a run may be continued with: the tables name real fields, and every other field is refused."""

from __future__ import annotations

from typing import Any

import pytest

from rwkvctl.config.specs import changes
from rwkvctl.config.specs.jobs import FinetuneSpec, PretrainSpec, SpaceSpec, TuneSpec
from rwkvctl.training.checkpoint_read import with_defaults


def spec(**fields: Any) -> dict[str, Any]:
    """A stored spec with some fields set, by their paths."""
    train = {"data": {"path": "/shards"}, "optimizer": {"lr": 1e-3}, "train": {"epochs": 3, "batch_size": 8}}
    stored = FinetuneSpec.model_validate(train).model_dump(mode="json")
    for path, value in fields.items():
        *groups, field = path.split("__")
        group = stored
        for name in groups:
            group = group[name]
        group[field] = value
    return stored


def test_the_tables_name_fields_that_exist():
    base = FinetuneSpec.model_validate(spec())
    sweep = TuneSpec(space_name="x", space=SpaceSpec.model_validate({"params": {"seed": {"choice": [1]}}}),
                     base=base, trials=1)  # fmt: skip
    fields = changes.flatten(base.model_dump()) | changes.flatten(sweep.model_dump())
    paths = [*changes.MAY_CHANGE, *changes.MAY_CHANGE_IF, *(field for field, _ in changes.MAY_CHANGE_IF.values())]
    paths += changes.ABSENT_MEANS
    assert [path for path in paths if not any(f == path or f.startswith(f"{path}.") for f in fields)] == []


@pytest.mark.parametrize(
    "changed",
    [
        {"cluster__workers": 2}, {"cluster__address": "head:6379"}, {"cluster__max_failures": 9}, {"storage": "/there"},
        {"tracking__uri": "http://x"}, {"data__workers": 7}, {"data__path": "/moved"}, {"name": "x"},
        {"train__log_steps": 1}, {"train__checkpoint_steps": 5},
    ],
)  # fmt: skip
def test_where_it_runs_and_what_it_tells_may_change(changed: dict[str, Any]):
    assert changes.differences(spec(), spec(**changed)) == []


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"seed": 7}, "seed: 42 -> 7"),
        ({"train__precision": "bf16"}, "train.precision: auto -> bf16"),
        ({"train__batch_size": 4}, "train.batch_size: 8 -> 4"),
        ({"train__compile": True}, "train.compile: False -> True"),
        ({"train__tail": "wrap"}, "train.tail: drop -> wrap"),
        ({"train__epochs": 9}, "train.epochs: 3 -> 9"),
        ({"optimizer__lr": 1.0}, "optimizer.lr: 0.001 -> 1.0"),
        ({"data__image_size": 64}, "data.image_size: 224 -> 64"),
        ({"data__split": "x"}, "data.split: None -> x"),
        ({"model__ccm": False}, "model.ccm: True -> False"),
        ({"a_field_of_tomorrow": 1}, "a_field_of_tomorrow: None -> 1"),
    ],
)
def test_what_is_computed_may_not(changed: dict[str, Any], said: str):
    assert changes.differences(spec(), spec(**changed)) == [said]


def test_a_rate_that_does_not_know_the_end_may_go_on_beyond_it():
    old, new = spec(optimizer__schedule="constant"), spec(optimizer__schedule="constant", train__epochs=9)
    assert changes.differences(old, new) == []
    assert changes.differences(old, new, longer=False) == ["train.epochs: 3 -> 9"], "not the same run for --resume auto"
    new["optimizer"]["schedule"] = "cosine"
    assert changes.differences(old, new) == ["optimizer.schedule: constant -> cosine", "train.epochs: 3 -> 9"]


def test_a_field_that_a_checkpoint_does_not_have_yet_means_what_was_done_then(monkeypatch: pytest.MonkeyPatch):
    old = spec()
    del old["train"]["tail"], old["augment"], old["train"]["compile"]
    assert changes.differences(with_defaults(old), spec()) == []
    monkeypatch.setitem(changes.ABSENT_MEANS, "train.tail", "wrap")
    assert changes.differences(with_defaults(old), spec()) == ["train.tail: wrap -> drop"]
    gone = spec() | {"a_field_of_yesterday": 3}
    assert changes.differences(with_defaults(gone), spec()) == ["a_field_of_yesterday: 3 -> None"]
    pretrain = PretrainSpec.model_validate({key: old[key] for key in ("data", "optimizer", "train")})
    assert with_defaults(pretrain.model_dump(mode="json"))["train"]["tail"] == "drop"
