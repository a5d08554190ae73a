"""Recipes, overrides, and what a user is told about a wrong one."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from rwkv_unet import ModelConfig
from rwkv_unet.config import ATTENTIONS, SCANS, SHIFTS
from rwkvctl.base.errors import UserError
from rwkvctl.config.specs import load
from rwkvctl.config.specs.jobs import FinetuneSpec, PretrainSpec, SpaceSpec, TuneSpec
from rwkvctl.config.specs.parts import ModelSpec

SMALL: dict[str, Any] = {
    "data": {"path": "shards"},
    "optimizer": {"lr": 1e-3},
    "train": {"epochs": 3, "batch_size": 8},
}


def build(*assignments: str, **fields: Any) -> FinetuneSpec:
    merged = load.merge(load.merge(SMALL, fields), load.parse_assignments(list(assignments)))
    return load.build(FinetuneSpec, merged, "recipe x")


def mistake(*assignments: str, **fields: Any) -> str:
    with pytest.raises(UserError) as caught:
        build(*assignments, **fields)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def recipe(name: str) -> Any:
    return load.load_recipe(name)


# Recipes and spaces -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", load.recipe_names())
def test_every_recipe_loads_and_survives_a_round_trip(name: str):
    spec = recipe(name)
    assert load.build(type(spec), yaml.safe_load(load.dump(spec)), name) == spec


@pytest.mark.parametrize("name", load.recipe_names())
def test_every_recipe_opens_with_the_command_that_runs_it(name: str):
    text = (load.job_folder() / "recipes" / f"{name}.yaml").read_text()
    assert text.startswith(f"# rwkvctl {load.read_recipe(name)['job']} {name} ")


@pytest.mark.parametrize("name", load.space_names())
def test_every_space_loads_and_names_fields_of_its_recipe(name: str):
    space = load.read_space(name)
    fields = recipe(space.recipe).model_dump()
    for path in space.params:
        node: Any = fields
        for part in path.split("."):
            node = node[part]


def test_recipes_by_job():
    assert load.recipe_names("pretrain") == ["imagefolder", "imagenet"]
    assert {"acdc", "synapse", "clinicdb", "busi", "binary", "multiclass"} <= set(load.recipe_names("finetune"))


PAPER = {
    # Section IV-A of the paper, and the weight decay of the authors' scripts.
    "imagenet": {
        "seed": 42, "data.image_size": 224, "train.epochs": 300, "train.batch_size": 1024,
        "optimizer.lr": 3e-3, "optimizer.lr_reference_batch": 1024, "optimizer.min_lr": 5e-7,
        "optimizer.weight_decay": 0.05, "optimizer.warmup_epochs": 20, "optimizer.warmup_lr": 5e-7,
        "optimizer.schedule": "cosine", "optimizer.update": "step", "optimizer.clip_grad": 5.0,
        "label_smoothing": 0.1, "ema_decay": 0.9998, "augment.rand_augment": "rand-m9-mstd0.5-inc1",
        "augment.color_jitter": 0.4, "augment.interpolation": "random",
    },
    "acdc": {
        "data.image_size": 224, "train.epochs": 150, "train.batch_size": 24, "optimizer.lr": 5e-4,
        "optimizer.min_lr": 0.0, "optimizer.weight_decay": 1.5e-4, "optimizer.schedule": "cosine",
        "loss.alpha": 0.2, "loss.beta": 0.8,
    },
    "synapse": {
        "data.image_size": 224, "train.epochs": 30, "train.batch_size": 24, "optimizer.lr": 1e-3,
        "optimizer.min_lr": 0.0, "optimizer.weight_decay": 1e-3, "optimizer.schedule": "cosine",
        "loss.alpha": 0.5, "loss.beta": 0.5, "train.validate_every": 0,
    },
    "binary": {
        "data.image_size": 256, "train.epochs": 300, "train.batch_size": 8, "optimizer.lr": 1e-4,
        "optimizer.min_lr": 1e-5, "optimizer.schedule": "cosine", "loss.alpha": 0.5, "loss.beta": 1.0,
        "model.decoder_kernel_size": 9, "model.ccm_hidden_rate": 2, "model.num_skips": 3,
    },
    "acdc-as-coded": {"optimizer.schedule": "acdc_as_coded", "optimizer.update": "step", "loss.alpha": 0.2},
    "synapse-as-coded": {"optimizer.schedule": "synapse_as_coded", "optimizer.update": "step", "train.epochs": 30},
}  # fmt: skip


@pytest.mark.parametrize("name", PAPER)
def test_recipes_say_what_the_paper_says(name: str):
    from rwkvctl.config.specs.changes import flatten

    fields = flatten(recipe(name).model_dump())
    assert {path: fields[path] for path in PAPER[name]} == PAPER[name]


@pytest.mark.parametrize("name", ["clinicdb", "kvasir", "busi", "isic2017", "colondb", "glas", "psvfm", "goals"])
def test_the_binary_sets_differ_in_their_data_alone(name: str):
    own, common = recipe(name).model_dump(), recipe("binary").model_dump()
    assert own["data"].pop("dataset") == name
    common["data"].pop("dataset")
    assert own == common


def test_a_recipe_of_the_users_own_may_build_on_ours(tmp_path: Path):
    path = tmp_path / "mine.yaml"
    path.write_text("base: acdc\ntrain: {epochs: 7}\n")
    spec = recipe(str(path))
    assert (spec.train.epochs, spec.train.batch_size, spec.loss.alpha) == (7, 24, 0.2)


# Overrides ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("train.epochs=3", {"train": {"epochs": 3}}),
        ("optimizer.lr=2e-3", {"optimizer": {"lr": "2e-3"}}),  # YAML 1.1; pydantic reads the number
        ("optimizer.lr=2.0e-3", {"optimizer": {"lr": 0.002}}),
        ("model.ccm=false", {"model": {"ccm": False}}),
        ("data.split=null", {"data": {"split": None}}),
        ("augment.scale=[0.5, 2]", {"augment": {"scale": [0.5, 2]}}),
        ("data.path=a=b", {"data": {"path": "a=b"}}),
        ("name=", {"name": None}),
    ],
)
def test_assignments(assignment: str, expected: dict[str, Any]):
    assert load.parse_assignments([assignment]) == expected


def test_later_assignments_win_and_neighbours_stay():
    fields = load.parse_assignments(["train.epochs=3", "train.batch_size=4", "train.epochs=5"])
    assert fields == {"train": {"epochs": 5, "batch_size": 4}}


@pytest.mark.parametrize("text", ["train.epochs", "=3", "train.=3", ".x=1", "a b=1", "a=[1", "a={", "a-b=1"])
def test_what_is_no_assignment_is_refused(text: str):
    with pytest.raises(UserError, match="--set"):
        load.parse_assignments([text])


def test_numbers_with_an_exponent_are_numbers():
    assert build("optimizer.lr=2e-3").optimizer.lr == 0.002


def test_ccm_hidden_is_another_name_and_not_written():
    for name in ("ccm_hidden", "ccm_hidden_rate"):
        assert build(f"model.{name}=3").model.ccm_hidden_rate == 3
    assert yaml.safe_load(load.dump(build("model.ccm_hidden=3")))["model"]["ccm_hidden_rate"] == 3


def test_both_names_of_one_field_are_refused():
    assert "ccm_hidden" in mistake("model.ccm_hidden=3", "model.ccm_hidden_rate=4")


def test_overrides_are_what_differs_from_the_published_model():
    assert ModelSpec().overrides() == {}
    assert ModelSpec(ccm=False, drop_path=0.1, encoder_weights="run").overrides() == {"ccm": False, "drop_path": 0.1}
    assert ModelSpec(name="unet", options={"dims": [8, 16]}).overrides() == {"dims": [8, 16]}


def test_the_spec_knows_every_field_and_attention_of_the_model():
    fields = {field.name: field.default for field in dataclasses.fields(ModelConfig)}
    ours = {name: x.default for name, x in ModelSpec.model_fields.items()}
    shared = {name for name in ours if name in fields and name != "drop_path"}  # null is the model's own 0.05
    assert {name: ours[name] for name in shared} == {name: fields[name] for name in shared}
    assert set(get_args(ModelSpec.model_fields["attention"].annotation)) == set(ATTENTIONS)
    assert get_args(ModelSpec.model_fields["shift"].annotation) == SHIFTS
    assert get_args(ModelSpec.model_fields["scan"].annotation) == SCANS


# Mistakes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("train.epoch=3", "train.epoch: unknown field (did you mean epochs or epoch_steps?)"),
        ("model.decoder_kernel=3", "model.decoder_kernel: unknown field (did you mean decoder_kernel_size?)"),
        ("zzz=3", "zzz: unknown field (known: job, name"),
        ("train.epochs=many", "train.epochs: input should be a valid integer"),
        ("train.epochs=0", "train.epochs: input should be greater than or equal to 1, got 0"),
        ("train.epochs=null", "train.epochs: input should be a valid integer, got None"),
        ("optimizer.lr=fast", "optimizer.lr: input should be a valid number"),
        ("optimizer.lr=.nan", "optimizer.lr"),
        ("optimizer.schedule=cosin", "optimizer.schedule: input should be 'cosine', 'poly'"),
        ("data.image_size=100", "data.image_size: must be divisible by 16 (use 96 or 112), got 100"),
        ("data.image_size=8", "data.image_size: must be divisible by 16 (use 16 or 16), got 8"),
        ("model.decoder_kernel_size=4", "model.decoder_kernel_size: must be odd, got 4"),
        ("model=tiny", "model: must be a mapping of fields, got 'tiny'"),
        ("name=../up", "name: string should match pattern"),
        ("train=null", "train: "),
        ("augment.horizontal_flip=1.5", "augment.horizontal_flip: input should be less than or equal to 1, got 1.5"),
        ("job=pretrain", "job: input should be 'finetune', got 'pretrain'"),
    ],
)
def test_one_mistake_is_one_line_with_its_path(assignment: str, said: str):
    assert mistake(assignment).startswith(f"recipe x: {said}")


def test_all_mistakes_are_reported_at_once():
    message = mistake("train.epochs=many", "optimizer.lr=-1", "model.ccm_hiden=2", "dat.path=x")
    assert message.startswith("recipe x: 4 problems: ")
    for path in ("train.epochs", "optimizer.lr", "model.ccm_hiden", "dat: unknown field (did you mean data?)"):
        assert path in message


def test_missing_fields_are_named():
    with pytest.raises(UserError, match=r"x: 3 problems: data: missing; optimizer: missing; train: missing"):
        load.build(FinetuneSpec, {}, "x")


@pytest.mark.parametrize(
    ("batch", "workers", "said"),
    [
        (8, 3, "use 2 workers or a batch of 9"),
        (24, 7, "use 6 workers or a batch of 28"),
        (2, 4, "use 2 workers or a batch of 4"),
    ],
)
def test_the_batch_is_divisible_by_the_workers(batch: int, workers: int, said: str):
    message = mistake(f"train.batch_size={batch}", f"cluster.workers={workers}")
    assert message == f"recipe x: train.batch_size {batch} is not divisible by cluster.workers {workers}: {said}"


def test_a_warm_up_ends_before_the_training_does():
    assert build("optimizer.warmup_epochs=2").optimizer.warmup_epochs == 2
    assert "optimizer.warmup_epochs 3 must be below train.epochs 3" in mistake("optimizer.warmup_epochs=3")


@pytest.mark.parametrize(
    ("assignments", "said"),
    [
        ("train.micro_batch=3", "train.batch_size 8 is not divisible by train.micro_batch 3: use train.micro_batch=2"),
        ("train.micro_batch=4 cluster.workers=3", "use train.micro_batch=2 or fewer workers"),
        ("cluster.workers=3", "train.batch_size 8 is not divisible by cluster.workers 3"),
        (
            "train.micro_batch=2 consistency.batch_size=6",
            "consistency.batch_size 6 is not divisible by the 4 micro-batches of a step",
        ),
        ("freeze_encoder=3", "freeze_encoder 3 must be below train.epochs 3"),
        ("train.patience=2 train.validate_every=0", "train.patience needs validation scores"),
    ],
)
def test_what_does_not_fit_together_is_one_line(assignments: str, said: str):
    assert said in mistake(*assignments.split())


def test_micro_batches_make_up_a_batch_for_workers_that_do_not_divide_it():
    assert build("train.micro_batch=2", "cluster.workers=3").micro_batches(3) == 4


def test_a_spec_does_not_change():
    with pytest.raises(ValueError, match="frozen"):
        build().seed = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("acdcc", r"recipe 'acdcc' is unknown: did you mean acdc"),
        ("xyzzy", r"recipe 'xyzzy' is unknown: choose from acdc, "),
        ("mine.yaml", r"recipe mine.yaml: no such file"),
    ],
)
def test_unknown_recipes(name: str, said: str):
    with pytest.raises(UserError, match=said):
        load.read_recipe(name)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"train: [", "not valid YAML"),
        (b"- 1\n", "must be a mapping of fields, not list"),
        (b"", "must be a mapping of fields, not NoneType"),
        (b"\xff\xfe\x00", "not valid YAML"),
        (b"base: nothing\n", "recipe 'nothing' is unknown"),
        (b"base: 3\n", "base"),
        (b"base: mine.yaml\n", "base"),
        (b"train: {epochs: 3}\n", "job"),
        (b"job: dance\n", "job"),
    ],
)
def test_damaged_recipe_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, said: str):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_bytes(content)
    with pytest.raises(UserError, match=said) as caught:
        load.load_recipe("mine.yaml")
    assert "\n" not in str(caught.value)


# Spaces -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({}, "params"),
        ({"a": {"choice": []}}, "choice"),
        ({"a": {"int": [1]}}, "int"),
        ({"a": {"int": [1, 4], "stp": 2}}, "stp"),
        ({"a": {"int": [4, 1]}}, "low"),
        ({"a": {"float": [1.0, 0.0]}}, "low"),
        ({"a": {"float": [0.0, 1.0], "log": True}}, "log"),
    ],
)
def test_wrong_spaces(tmp_path: Path, params: dict[str, Any], said: str):
    path = tmp_path / "space.yaml"
    path.write_text(yaml.safe_dump({"params": params}))
    with pytest.raises(UserError, match=said) as caught:
        load.read_space(str(path))
    assert str(caught.value).startswith("space space.yaml: ")


def test_a_sweep_holds_all_that_it_varies():
    space = load.read_space("ccm_hidden")
    spec = TuneSpec(space_name="ccm_hidden", space=space, base=build(), trials=4)
    again = load.build(TuneSpec, yaml.safe_load(load.dump(spec)), "tune")
    assert again == spec
    assert isinstance(again.space, SpaceSpec)
    assert list(again.space.params) == ["model.ccm_hidden_rate"]


def test_the_defaults_of_the_augmentation_are_the_papers():
    assert PretrainSpec.model_fields["augment"].default == recipe("imagenet").augment


@pytest.mark.parametrize(
    ("base", "said"),
    [
        ({"data": {"dataset": "a"}}, "base.optimizer: missing; base.train: missing"),
        ({"job": "finetune", "train": {"epoch": 1}}, "base.train.epoch: unknown field (did you mean epochs or epoch"),
        (
            {"job": "pretrain", "label_smoothin": 1},
            "base.label_smoothin: unknown field (did you mean label_smoothing?)",
        ),
        ({"job": "evaluate"}, "base.job: input should be 'finetune', got 'evaluate'"),
        (3, "base: must be a mapping of fields, got 3"),
    ],
)
def test_the_base_of_a_sweep_is_named_by_its_fields_alone(base: object, said: str):
    """Whatever kind it is of; a fine-tuning where it does not say."""
    space = {"cover": True, "params": {"data.split": {"choice": ["a", "b"]}}}
    with pytest.raises(UserError) as caught:
        load.build(TuneSpec, {"space_name": "x", "space": space, "trials": 2, "base": base}, "sweep")
    assert said in str(caught.value)
