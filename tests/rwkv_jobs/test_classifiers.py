"""Classifiers end to end: figures of a part, classes of images, the network as a file."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from rwkv_jobs import pretrain
from rwkv_jobs.entry import guarded
from rwkvctl.base.errors import UserError
from rwkvctl.cli.app import app
from rwkvctl.config.specs.jobs import EvaluateSpec
from rwkvctl.data.store.case_reader import reader_for
from rwkvctl.data.store.manifest import Manifest
from rwkvctl.models import bundle
from rwkvctl.registry.card import as_markdown, of_bundle
from rwkvctl.runs import folder as run_folder

from .conftest import Jobs, mlflow_runs
from .test_evaluate import untrained


@pytest.fixture(scope="module")
def model(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    untrained(shards / "textures", folder := tmp_path_factory.mktemp("models") / "textures", seed=3)
    return folder


def table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def evaluated(home: Path, model: Path, **fields: Any) -> tuple[dict[str, Any], Path]:
    spec = EvaluateSpec.model_validate(
        {"name": "eval", "model": str(model), "cluster": {"launcher": "process"}, "storage": str(home / "runs")}
        | {"tracking": {"uri": f"sqlite:///{home / 'mlflow.db'}"}, "loader_workers": 0}
        | fields
    )
    run_dir = run_folder.create(spec, str(home / "runs"))
    assert guarded("evaluate", str(run_dir), []) == 0
    return json.loads((run_dir / "result.json").read_text()), run_dir


def test_what_is_scored_is_what_is_predicted(shards: Path, home: Path, model: Path, tmp_path: Path):
    """The table of an evaluation, and the one of `predict` for the same files."""
    found, run_dir = evaluated(home, model)
    manifest = Manifest.load(shards / "textures")
    rows = table(run_dir / "artifacts" / "test" / "cases.csv")
    ids = manifest.ids(None, "test")
    assert [row["case"] for row in rows] == ids
    assert found["mean"]["accuracy"] == pytest.approx(np.mean([int(row["right"]) for row in rows]))
    assert found["mean"]["accuracy"] == pytest.approx(found["top1"] / 100)
    assert {"accuracy", "balanced_accuracy", "auroc", "ece"} == set(found["intervals"]["mean"])
    page = (run_dir / "artifacts" / "test" / "evaluation.html").read_text()
    assert "<h2>Confusion</h2>" in page
    assert "test cases of split official are its validation cases too" in page
    messages = (run_dir / "journal.jsonl").read_text()
    assert f"{len(ids)} of {len(ids)} test cases of split official are its validation cases too" in messages
    card = as_markdown(of_bundle(bundle.read_info(model), "m", 1))
    assert 'pipeline_tag: "image-classification"' in card
    assert "Research: classification of images" in card
    [tracked] = mlflow_runs(home)
    assert tracked.data.metrics["test/auroc/mean"] == pytest.approx(found["mean"]["auroc"])

    reader = reader_for(manifest, ids)
    for row, key in enumerate(ids):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / f"{key}.jpg").write_bytes(reader.read(row, "jpg"))
    done = CliRunner().invoke(app, ["predict", str(model), str(tmp_path / "in"), "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    predicted = {Path(row["input"]).stem: row for row in table(tmp_path / "out" / "classes.csv")}
    assert predicted.keys() == set(ids)
    for row in rows:
        own = predicted[row["case"]]
        assert own["class"] == row["predicted"]
        for name in manifest.classes:
            assert float(own[f"p_{name}"]) == pytest.approx(float(row[f"p_{name}"]), abs=2e-5)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--tile"], "--tile: is for masks, and .* is a classifier; leave it out"),
        (["--tta", "flips"], "--tta: is for masks"),
        (["--out", "s3://bucket/x"], "--out s3://bucket/x: the table of classes is written on a disk"),
    ],
)
def test_what_classes_of_images_cannot_have(model: Path, tmp_path: Path, options: list[str], said: str, capfd: Any):
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "a.png")
    out = [] if "--out" in options else ["--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, ["predict", str(model), str(tmp_path / "a.png"), *out, *options])
    assert done.exit_code != 0 or done.exception is not None
    text = str(done.exception) + capfd.readouterr().err + done.output
    assert re.search(said, text), text
    assert not (tmp_path / "out").exists()


def test_a_table_is_not_replaced_unasked_and_damage_is_named(model: Path, tmp_path: Path, capfd: Any):
    (tmp_path / "in").mkdir()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "b.png").write_bytes(b"no picture")
    arguments = ["predict", str(model), str(tmp_path / "in"), "--out", str(tmp_path / "out")]
    assert CliRunner().invoke(app, arguments).exit_code == 1
    assert "1 of 2 inputs failed, the others are in" in capfd.readouterr().err
    assert [row["input"] for row in table(tmp_path / "out" / "classes.csv")] == [str(tmp_path / "in" / "a.png")]
    assert CliRunner().invoke(app, arguments).exit_code != 0
    assert CliRunner().invoke(app, [*arguments, "--overwrite"]).exit_code == 1


def test_a_classifier_is_exported_as_the_network_alone(model: Path, tmp_path: Path):
    import onnxruntime

    arguments = ["model", "export", str(model), "--out", str(tmp_path / "m.onnx")]
    done = CliRunner().invoke(app, arguments)
    assert isinstance(done.exception, UserError)
    assert "is a classifier, which is exported as the network alone: add --logits" in str(done.exception)
    assert CliRunner().invoke(app, [*arguments, "--logits", "--fixed-size"]).exit_code == 0
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    x = np.random.default_rng(0).normal(size=(2, 3, 32, 32)).astype(np.float32)
    network, _ = bundle.load(model)
    with torch.inference_mode():
        expected = network(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(session.run(None, {"image": x})[0], expected, atol=1e-4)


@pytest.mark.slow
def test_a_classifier_starts_from_another_ones_encoder(jobs: Jobs, model: Path, home: Path, tmp_path: Path):
    """All but the head, which begins as that of a random start does."""
    untrained(jobs.shards / "textures", tmp_path / "xt", seed=5, variant="xt")
    own = [
        "train.epochs=1",
        "train.epoch_steps=1",
        f"model.encoder_weights={tmp_path / 'xt'}",
        "optimizer.warmup_epochs=0",
    ]
    run_dir = jobs.new("pretrain", "warm", *own)
    assert jobs.run("pretrain", run_dir) == 0
    start, source = load_file(run_dir / "encoder.safetensors"), load_file(tmp_path / "xt" / "weights.safetensors")
    assert all(torch.equal(start[name], source[name]) for name in start)
    assert {name for name in source if name not in start} == {name for name in source if name.startswith("head.")}
    spec = run_folder.read_spec(run_dir)
    made = pretrain.make_model(spec, Manifest.load(jobs.shards / "textures"), run_dir).state_dict()
    assert all(torch.equal(made[name], start[name]) for name in start)
    assert not torch.equal(made["head.fc.weight"], source["head.fc.weight"])
    assert bundle.read_info(run_dir / "model").extra["encoder"]["reference"] == str(tmp_path / "xt")


@pytest.mark.parametrize(
    ("name", "reference", "said"),
    [
        ("rwkv_unet_enc_xt", "pretrained", "means timm's weights, and rwkv_unet_enc_xt is RWKV-UNet's own"),
        ("rwkv_unet_enc_xt", "/nowhere/w.pth", "model.encoder_weights /nowhere/w.pth: no such file"),
        ("resnet10t", None, "none of its 235 tensor names belongs to this classifier"),
    ],
)
def test_what_a_classifier_cannot_start_from(
    jobs: Jobs, model: Path, capsys: Any, name: str, reference: str, said: str
):
    own = [f"model.name={name}", f"model.encoder_weights={reference or model}", "optimizer.warmup_epochs=0"]
    assert jobs.run("pretrain", jobs.new("pretrain", "cold", *own)) == 2
    assert said in capsys.readouterr().err
