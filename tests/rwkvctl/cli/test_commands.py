"""The command line: settings, recipes, and one line and exit code 2 for every mistake, with nothing left behind."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from rwkvctl.data.convert.prepare import prepare
from rwkvctl.data.convert.synth import phantom
from rwkvctl.data.store.manifest import Manifest


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared data sets `polyps` and `textures`."""
    out = tmp_path_factory.mktemp("shards")
    raw = out / "raw"
    prepare("folder", [phantom.write_polyps(raw / "polyps", n=12, size=40)], out / "polyps", seeds=[41])
    textures = phantom.write_textures(raw / "textures", classes=2, per_class=4, size=32)
    prepare("imagefolder", [textures], out / "textures")
    return out


# Settings and recipes -----------------------------------------------------------------------------------------------


def test_config(rwkvctl, home: Path, monkeypatch: pytest.MonkeyPatch):
    assert "address: null  (default)" in rwkvctl("config show").out
    assert "address: head:6379  (file)" in rwkvctl("config set address head:6379").out
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking:5000")
    assert "tracking_uri: http://tracking:5000  ($MLFLOW_TRACKING_URI)" in rwkvctl("config show").out
    shown = json.loads(rwkvctl("config show --json").out)
    assert (shown["address"], shown["storage"]) == ("head:6379", str(home / "runs"))
    assert "address: null  (default)" in rwkvctl("config unset address").out


def test_recipes(rwkvctl):
    listed = rwkvctl("recipe list").out
    assert "finetune: acdc-as-coded, acdc, " in listed
    assert re.search(r"^tune \(spaces\): .*ccm_hidden.*decoder_kernel.*loss_weights", listed, re.MULTILINE)
    assert json.loads(rwkvctl("recipe list --json").out)["pretrain"] == ["imagefolder", "imagenet"]
    assert yaml.safe_load(rwkvctl("recipe show acdc").out)["train"]["epochs"] == 150


def test_a_shown_recipe_is_a_recipe(rwkvctl, tmp_path: Path, shards: Path):
    (tmp_path / "mine.yaml").write_text(rwkvctl("recipe show binary").out)
    plan = rwkvctl(f"finetune {tmp_path}/mine.yaml --variant t --data {shards}/polyps --dry-run --json")
    assert json.loads(plan.out)["spec"]["train"]["epochs"] == 300


def test_there_are_no_runs_yet(rwkvctl, home: Path):
    assert rwkvctl("runs").out == f"no runs in {home / 'runs'}\n"
    assert json.loads(rwkvctl("runs --json").out) == []
    assert not home.exists()


# Plans --------------------------------------------------------------------------------------------------------------


def test_a_dry_run_says_what_a_training_means(rwkvctl, shards: Path, home: Path):
    done = rwkvctl(f"finetune --variant t --data {shards}/polyps --workers 2 --set data.image_size=64 --dry-run --json")
    plan, spec = json.loads(done.out)["plan"], json.loads(done.out)["spec"]
    manifest = Manifest.load(shards / "polyps")
    assert (spec["data"]["dataset"], spec["data"]["path"]) == ("polyps", str(shards / "polyps"))
    assert spec["loss"] == {"alpha": 0.5, "beta": 1.0}, "the binary recipe was picked"
    assert plan["parameters"] == 3_145_761
    assert plan["training_samples"] == len(manifest.ids(None, "train"))
    assert plan["batch"] == "8 = 2 workers x 4; batch norm over 8 images"  # auto is sync for so few
    assert plan["steps"] == 300 * plan["steps_per_epoch"]
    assert plan["macs_paper"] > 0
    assert not (home / "runs").exists()


@pytest.mark.parametrize(
    ("line", "field", "value"),
    [
        ("pretrain --data {shards}/textures --variant s --set train.batch_size=8", "model.name", "rwkv_unet_enc_s"),
        ("finetune --data {shards}/polyps --set model.ccm_hidden=3 --variant t", "model.ccm_hidden_rate", 3),
        ("finetune --data {shards}/polyps --set seed=7 --name my-run --variant t", "name", "my-run"),
        ("finetune --data {shards}/polyps --set optimizer.lr=2e-3 --variant t", "optimizer.lr", 0.002),
    ],
)
def test_options_become_fields(rwkvctl, shards: Path, line: str, field: str, value: object):
    done = rwkvctl(f"{line.format(shards=shards)} --dry-run --json")
    assert done.code == 0, done.err
    found = json.loads(done.out)["spec"]
    for part in field.split("."):
        found = found[part]
    assert found == value


def test_the_data_root_is_where_data_are_by_default(rwkvctl, shards: Path):
    rwkvctl(["config", "set", "data_root", str(shards)])
    done = rwkvctl("finetune binary --set data.dataset=polyps --variant t --dry-run --json")
    assert json.loads(done.out)["spec"]["data"]["path"] == str(shards / "polyps")


# Mistakes -----------------------------------------------------------------------------------------------------------

MISTAKES = [
    ("recipe show acdcc", "recipe 'acdcc' is unknown: did you mean acdc"),
    ("config set adress x", "config key 'adress' is unknown"),
    ("config set gpus_per_node four", "gpus_per_node: "),
    ("config unset adress", "config key 'adress' is unknown"),
    ("data verify {home}/none", "no prepared data set here"),
    ("data show {home}/none", "no prepared data set here"),
    ("data prepare foldr --source {shards} --out {home}/x", "format 'foldr' is unknown; did you mean folder"),
    ("data prepare folder --source {home}/none --out {home}/x", "{home}/none"),
    ("data prepare folder --source {shards}/raw/polyps --out {home}/x --split 8-1-1", "--ratio '8-1-1'"),
    ("pretrain", "rwkvctl data prepare imagenet --source DOWNLOAD --out {home}/data/imagenet"),
    ("pretrain acdc --data {shards}/textures", "recipe acdc: is for finetune, not pretrain"),
    ("pretrain imagefolder --data {shards}/polyps", "is for segmentation, and pretrain needs classification"),
    ("finetune", "recipe: say which"),
    ("finetune binary", "say which with --data FOLDER"),
    ("finetune acdc", "rwkvctl data prepare acdc --source DOWNLOAD --out {home}/data/acdc"),
    ("finetune binary --data {home}/none", "no prepared data set here"),
    ("finetune binary --data {shards}/textures", "is for classification, and finetune needs segmentation"),
    ("finetune binary --data {shards}/polyps --variant q", "--variant 'q': must be xt, t, s or b"),
    ("finetune binary --data {shards}/polyps --set train.epoch=3", "train.epoch: unknown field"),
    ("finetune binary --data {shards}/polyps --set train.epochs", "--set 'train.epochs': must be FIELD=VALUE"),
    ("finetune binary --data {shards}/polyps --set train.epochs=x", "train.epochs: input should be a valid integer"),
    ("finetune binary --data {shards}/polyps --workers 3", "train.batch_size 8 is not divisible by cluster.workers 3"),
    ("finetune binary --data {shards}/polyps --workers 64 --set train.batch_size=64", "this machine has"),
    ("finetune binary --data {shards}/polyps --nodes 4", "cluster.nodes 4 needs a cluster: give --address"),
    ("finetune binary --data {shards}/polyps --set data.split=x", "x"),
    ("finetune binary --data {shards}/polyps --encoder nowhere", "run 'nowhere' is not in {home}/runs"),
    ("finetune binary --data {shards}/polyps --resume nowhere", "run 'nowhere' is not in {home}/runs"),
    ("finetune binary --data {shards}/polyps --set model.name=rwkv_unet_x --dry-run", "rwkv_unet_x"),
    ("finetune --data {shards}/polyps --set model.encoder=resnet18 --set model.attention=mhsa --dry-run", "mhsa"),
    ("finetune --data {shards}/polyps --set model.encoder=resnet5 --dry-run", "did you mean resnet50"),
    ("finetune --data {shards}/polyps --set model.name=rwkv_unet_3d_t --dry-run", "takes volumes"),
    ("finetune --resume nowhere", "run 'nowhere' is not in {home}/runs"),
    ("finetune --resume nowhere --dry-run", "run 'nowhere' is not in {home}/runs"),
    ("tune --space nope", "space 'nope' is unknown"),
    ("tune --data {shards}/polyps", "--space: say which"),
    ("evaluate nowhere --split test --split-rule x --part val", "--split-rule is now called --split"),
    ("finetune --data {shards}/polyps --set tracking.register_as=a/b:c", "model name 'a/b:c': use letters, digits"),
    ("finetune --data {shards}/polyps --set data.dataset=a/b", "set tracking.register_as to another name"),
    ("finetune --data {shards}/polyps --set storage=http://bucket/runs", "storage: must be a folder that all workers"),
    ("finetune --data {shards}/polyps --workers 2 --set cluster.launcher=process", "needs torchrun --nproc-per-node 2"),
    ("config set storage gs://bucket/runs", "storage: must be a folder"),
    ("config set address head", "address: must be HOST:PORT"),
    ("tune --space ccm_hidden", "rwkvctl data prepare synapse --source DOWNLOAD --out {home}/data/synapse"),
    ("tune --space ccm_hidden --resume nowhere", "run 'nowhere' is not in {home}/runs"),
    ("evaluate nowhere", "run 'nowhere' is not in {home}/runs"),
    ("evaluate nowhere --part train", "part: input should be 'val' or 'test'"),
    ("predict nowhere a.png --out {home}/masks", "run 'nowhere' is not in {home}/runs"),
    ("model export nowhere --out {home}/a.txt", "must end in .onnx or .pt2; or say which by --format"),
    ("model export nowhere --out {home}/a.pt2 --format onnx", "ends in .pt2; leave one of them out"),
    ("model export nowhere --out {home}/a.pt2", "run 'nowhere' is not in {home}/runs"),
    ("sync nowhere", "run 'nowhere' is not in {home}/runs"),
]


@pytest.mark.parametrize(("line", "said"), MISTAKES, ids=[line for line, _ in MISTAKES])
def test_a_mistake_is_one_line_and_leaves_nothing(rwkvctl, home: Path, shards: Path, line: str, said: str):
    done = rwkvctl(line.format(home=home, shards=shards))
    assert done.code == (4 if "--resume nowhere" in line or line == "sync nowhere" else 2), done.err
    [error] = done.err.splitlines()
    assert error.startswith("error: ")
    assert said.format(home=home) in error
    assert done.out == ""
    left = [path for path in home.rglob("*") if path.is_file() and "cache" not in path.parts]
    assert left == [], "nothing but the memory of which shards are sound"


@pytest.mark.parametrize("line", ["nope", "data prepare folder", "evaluate", "tune", "predict x --out y", "runs --x"])
def test_a_wrong_command_line_is_code_2(rwkvctl, home: Path, line: str):
    done = rwkvctl(line)
    assert done.code == 2
    assert done.err
    assert not home.exists()


def test_a_classifier_is_exported_alone(rwkvctl, classifier_folder: Callable[[str], Path], tmp_path: Path):
    classifier_folder("resnet10t")
    done = rwkvctl(f"model export {tmp_path}/encoder --out {tmp_path}/model.onnx")
    assert (done.code, done.out) == (2, "")
    assert done.err == (
        f"error: model {tmp_path}/encoder: is a classifier, which is exported as the network alone: add --logits\n"
    )
    assert not (tmp_path / "model.onnx").exists()
