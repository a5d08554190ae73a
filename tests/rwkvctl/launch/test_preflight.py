"""What is refused before anything is started."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from rwkvctl.base.errors import UserError
from rwkvctl.config import settings
from rwkvctl.config.specs.jobs import FinetuneSpec, PretrainSpec, SpaceSpec, TuneSpec
from rwkvctl.config.specs.parts import ClusterSpec
from rwkvctl.data.convert.prepare import prepare
from rwkvctl.data.convert.synth import phantom
from rwkvctl.data.store.manifest import Manifest
from rwkvctl.launch import complete_spec, preflight


@pytest.fixture(scope="session")
def polyps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    raw = phantom.write_polyps(tmp_path_factory.mktemp("raw") / "polyps", n=12, size=32)
    return prepare("folder", [raw], tmp_path_factory.mktemp("shards") / "polyps", seeds=[41]).root


@pytest.fixture(scope="session")
def textures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    raw = phantom.write_textures(tmp_path_factory.mktemp("raw") / "textures", classes=2, per_class=5, size=32)
    return prepare("imagefolder", [raw], tmp_path_factory.mktemp("shards") / "textures").root


def spec(kind: type = FinetuneSpec, *, data: Any = "nowhere", batch: int = 4, **fields: Any) -> Any:
    train = {"epochs": 3, "batch_size": batch} | fields.pop("train", {})
    fields = {"data": {"path": str(data)}, "optimizer": {"lr": 1e-3}, "train": train} | fields
    return kind.model_validate(fields)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"workers": 3}, "workers 3 x cluster.cpus_per_worker 1 needs 3 CPUs, this machine has 2: use --workers 2"),
        ({"workers": 2, "cpus_per_worker": 2}, "needs 4 CPUs, this machine has 2: use --workers 1"),
        ({"cpus_per_worker": 3}, "cluster.workers 1 x cluster.cpus_per_worker 3 needs 3 CPUs"),
        ({"nodes": 2}, "cluster.nodes 2 needs a cluster: give --address"),
        ({"workers": 2}, None),
        ({"workers": 64, "address": "head:6379"}, None),
        ({"workers": 64, "launcher": "process"}, "cluster.workers 64 with the process launcher needs torchrun"),
        ({"workers": 1, "launcher": "process"}, None),
    ],
)  # fmt: skip
def test_workers_fit_the_machine(fields: dict[str, Any], said: str | None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1})
    if said is None:
        preflight.check_cluster(ClusterSpec.model_validate(fields))
        return
    with pytest.raises(UserError) as caught:
        preflight.check_cluster(ClusterSpec.model_validate(fields))
    assert said in str(caught.value)


def test_colours_of_grey_images_are_refused_when_they_are_asked_for(cardiac: Manifest, polyps: Path):
    """A preset leaves them out."""
    for augment in ({"hue": 0.2}, {"preset": "nnunet", "hue": 0.2}, {"preset": "photo", "hue": 0.4}):
        made = spec(data=cardiac.root, augment=augment)
        with pytest.raises(UserError, match=r"^augment.hue: the images of /.* are grey and have no colours; set it"):
            preflight.check_training(made)
    for augment in ({"preset": "photo"}, {"preset": "photo", "hue": 0}, {"hue": 0}, {"hue_shift": 0.3}):
        preflight.check_training(spec(data=cardiac.root, augment=augment))
    preflight.check_training(spec(data=polyps, augment={"hue": 0.2}))
    photo = spec(data=cardiac.root, augment={"preset": "photo"})
    assert preflight.left_out(photo, cardiac) == ["saturation", "hue"]
    assert preflight.left_out(photo, Manifest.load(polyps)) == []


def test_sound_data_pass(polyps: Path):
    assert preflight.check_training(spec(data=polyps)).fingerprint == Manifest.load(polyps).fingerprint


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"batch": 64}, "train.batch_size 64 is more than the 9 training samples"),
        ({"data_split": "nope"}, "nope"),
    ],
)
def test_what_the_data_cannot_give(polyps: Path, fields: dict[str, Any], said: str):
    split = fields.pop("data_split", None)
    made = spec(data=polyps, **fields)
    made = made.model_copy(update={"data": made.data.model_copy(update={"split": split})})
    with pytest.raises(UserError, match=said):
        preflight.check_training(made)


def test_a_batch_may_wrap(polyps: Path):
    preflight.check_training(spec(data=polyps, batch=64, train={"tail": "wrap"}))


def test_a_job_gets_data_of_its_task(polyps: Path, textures: Path):
    with pytest.raises(UserError, match="is for segmentation, and pretrain needs classification"):
        preflight.check_training(spec(PretrainSpec, data=polyps))
    with pytest.raises(UserError, match="is for classification, and finetune needs segmentation"):
        preflight.check_training(spec(data=textures))


@pytest.mark.parametrize("every", [0, 1])
def test_a_pretraining_is_scored_at_its_end_in_any_case(textures: Path, tmp_path: Path, every: int):
    data = Path(shutil.copytree(textures, tmp_path / "data"))
    next(data.glob("val*.tar")).unlink()
    with pytest.raises(UserError, match=r"val-\d+\.tar: cannot be read"):
        preflight.check_training(spec(PretrainSpec, data=data, train={"validate_every": every}))


def test_a_sweep_is_checked_by_what_it_varies(polyps: Path):
    space = SpaceSpec.model_validate({"params": {"seed": {"choice": [1]}}})
    sweep = TuneSpec(space_name="x", space=space, base=spec(data=polyps, batch=64), trials=1)
    with pytest.raises(UserError, match="more than the 9 training samples"):
        preflight.check(sweep)


@pytest.mark.parametrize("number", range(2))
def test_a_damaged_shard_is_named(polyps: Path, tmp_path: Path, number: int):
    data = Path(shutil.copytree(polyps, tmp_path / "data"))
    shard = sorted(data.glob("*.tar"))[0]
    content = bytearray(shard.read_bytes())
    content[len(content) // 2 + number] ^= 255
    shard.write_bytes(content)
    for _ in range(2):  # and is not remembered as sound
        with pytest.raises(UserError, match=str(shard)):
            preflight.check_training(spec(data=data))


@pytest.mark.parametrize(
    ("kind", "dataset", "form"),
    [(FinetuneSpec, "acdc", "acdc"), (FinetuneSpec, "clinicdb", "clinicdb"), (PretrainSpec, "cifar", "imagefolder")],
)
def test_absent_data_come_with_the_command_that_makes_them(tmp_path: Path, kind: type, dataset: str, form: str):
    made = spec(kind)
    machine = settings.load().model_copy(update={"data_root": str(tmp_path)})
    made = made.model_copy(update={"data": made.data.model_copy(update={"path": None, "dataset": dataset})})
    with pytest.raises(UserError) as caught:
        preflight.check_training(complete_spec.with_data(made, machine))
    command = f"rwkvctl data prepare {form} --source DOWNLOAD --out {tmp_path / dataset}"
    assert str(caught.value).endswith(command)


@pytest.mark.parametrize(
    ("batch", "workers", "size", "said"),
    [
        (1, 1, 16, "use train.batch_size=2 or data.image_size=32"),
        (2, 2, 16, "use train.batch_size=4 or data.image_size=32"),
        (2, 1, 16, None),
        (1, 1, 32, None),
    ],
)
def test_batch_norm_gets_more_than_one_value(polyps: Path, batch: int, workers: int, size: int, said: str | None):
    own = {"model": {"name": "rwkv_unet_xt"}, "cluster": {"workers": workers}}
    made = spec(data=polyps, batch=batch, **own)
    made = made.model_copy(update={"data": made.data.model_copy(update={"image_size": size, "dataset": "polyps"})})
    if workers == 2:  # which have enough of them together
        preflight.check_training(made)
        made = made.model_copy(update={"train": made.train.model_copy(update={"batch_norm": "local"})})
    if said is None:
        preflight.check_training(made)
        return
    with pytest.raises(UserError, match=said):
        preflight.check_training(made)


def test_data_below_a_url(tmp_path: Path):
    assert complete_spec.below("s3://bucket/sets/", "acdc") == "s3://bucket/sets/acdc"
    assert complete_spec.below(str(tmp_path), "acdc") == str(tmp_path / "acdc")


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"data.split": {"choice": ["default", "nope"]}}, "space own: split 'default': polyps has "),
        ({"train.batch_size": {"int": [4, 40], "step": 36}}, "space own: train.batch_size 40 is more than the "),
        ({"model.encoder": {"choice": ["resnet18", "resnet81"]}}, "space own: model.name rwkv_unet_xt: mod"),
        ({"model.encoder": {"choice": ["maxvit_tiny_tf_224"]}}, "space own: data.image_size 32: model rw"),
        ({"optimizer.lr": {"float": [1e-4, 1e-3]}}, None),
    ],
)  # fmt: skip
def test_what_no_trial_of_a_sweep_could_do_is_refused_before_it_starts(
    polyps: Path, params: dict[str, Any], said: str | None
):
    base = spec(data=polyps, model={"name": "rwkv_unet_xt"})
    base = base.model_copy(update={"data": base.data.model_copy(update={"image_size": 32})})
    sweep = TuneSpec(space_name="own", space=SpaceSpec.model_validate({"params": params}), base=base, trials=2)
    if said is None:
        preflight.check(sweep)
        return
    with pytest.raises(UserError) as caught:
        preflight.check(sweep)
    assert str(caught.value).startswith(said)
    assert len(str(caught.value)) < 300
