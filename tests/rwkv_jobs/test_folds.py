"""Cross-validation by one command: a model a fold, every case scored by the one that has not seen it, an ensemble."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file

from rwkv_jobs import serve, trial
from rwkv_jobs.driver import drive
from rwkv_jobs.entry import guarded
from rwkvctl.base.errors import JobFailedError, UserError
from rwkvctl.cli import assemble
from rwkvctl.cli import folds as cross_validation
from rwkvctl.config.specs.jobs import EvaluateSpec, FinetuneSpec, PredictSpec, PretrainSpec, ServeSpec, TuneSpec
from rwkvctl.data.convert import synth
from rwkvctl.data.convert.prepare import prepare
from rwkvctl.data.convert.resplit import add_folds
from rwkvctl.data.feed.cases import iter_cases
from rwkvctl.data.feed.model_input import to_input
from rwkvctl.data.feed.transforms import eval_pixels
from rwkvctl.data.store.case_reader import reader_for
from rwkvctl.data.store.manifest import Manifest
from rwkvctl.data.store.reader import Reader
from rwkvctl.models import bundle, members
from rwkvctl.models.ensemble import Member, Segmenter
from rwkvctl.models.inference import segment_image
from rwkvctl.models.segmenting import Options
from rwkvctl.runs import folder as run_folder
from rwkvctl.training import metrics

from .conftest import mlflow_runs

TINY = [
    "data.image_size=32", "data.workers=0", "train.batch_size=2", "train.epochs=1", "train.epoch_steps=2",
    "cluster.launcher=process",
]  # fmt: skip


def folds_spec(data: Path, asked: str, *assignments: str) -> TuneSpec:
    """As `rwkvctl finetune --folds` starts it, tiny."""
    base = assemble.training_spec(
        "finetune", None, str(data), {"model": {"name": "rwkv_unet_xt"}}, [*TINY, *assignments], None
    )
    assert isinstance(base, FinetuneSpec)
    manifest = Manifest.load(data)
    found = cross_validation.find(manifest, asked)
    spec = cross_validation.spec_of(base, found, concurrency=None, name="cv")
    cross_validation.add(str(data), found)
    return spec


def evaluated(home: Path, model: str, name: str, **fields: Any) -> tuple[dict[str, Any], Path]:
    spec = EvaluateSpec.model_validate(
        {"name": name, "model": model, "cluster": {"launcher": "process"}, "storage": str(home / "runs")}
        | {"tracking": {"uri": f"sqlite:///{home / 'mlflow.db'}"}, "loader_workers": 0}
        | fields
    )
    run_dir = run_folder.create(spec, str(home / "runs"))
    assert guarded("evaluate", str(run_dir), []) == 0
    return json.loads((run_dir / "result.json").read_text()), run_dir


@pytest.fixture
def data(shards: Path, tmp_path: Path) -> Path:
    """Polyps that splits may be added to."""
    return Path(shutil.copytree(shards / "polyps", tmp_path / "polyps"))


def table(run_dir: Path, part: str) -> list[dict[str, str]]:
    return list(csv.DictReader((run_dir / "artifacts" / part / "cases.csv").read_text().splitlines()))


@pytest.mark.slow
def test_a_cross_validation_from_splits_to_scores_and_registry(data: Path, home: Path):
    spec = folds_spec(data, "3")
    run_dir = run_folder.create(spec, str(home / "runs"))
    result = drive(spec, run_dir)
    manifest = Manifest.load(data)
    splits = [f"folds3_s41_fold{n}" for n in range(3)]
    held_out = [manifest.ids(split, "val") for split in splits]

    # Every case once, by the model of its own fold.
    found = result["cross_validation"]
    assert found["cases"] == sum(map(len, held_out))
    assert [one["cases"] for one in found["folds"]["each"]] == list(map(len, held_out))
    rows = table(run_dir, "val")
    assert {row["case"]: int(row["fold"]) for row in rows} == {
        key: n for n, keys in enumerate(held_out) for key in keys
    }
    folders = members.folders(run_dir / "model")
    scored = {row["case"]: float(row["dsc_strict"]) for row in rows if row["dsc_strict"]}
    for number, split in enumerate(splits):
        model, info = bundle.load(folders[number])
        assert info.extra["split"] == split
        for case in iter_cases(manifest, split=split, part="val"):
            mask = segment_image(model, case.image, image_size=32, image_kind="rgb8")
            [score] = metrics.score_case(mask, case.mask, 2, None)
            assert scored.get(case.key) == pytest.approx(score.strict_dsc, abs=1e-6)
    means = [one["dsc_strict"] for one in found["folds"]["each"]]
    assert found["folds"]["deviation"]["dsc_strict"] == pytest.approx(np.std(means, ddof=1))
    page = (run_dir / "artifacts" / "val" / "evaluation.html").read_text()
    assert "<h2>Folds</h2>" in page

    # The test part by the mean of the probabilities of all, as `predict` makes masks of them.
    tested, test_dir = evaluated(home, "cv", "tested")
    assert (tested["part"], tested["measured"]["split"], tested["measured"]["trained_on"]) == ("test", "folds3_s41", 0)
    segmenter = Segmenter([Member(*bundle.load(folder)) for folder in folders], Options(probabilities=True))
    expected = {}
    for case in iter_cases(manifest, split=splits[0], part="test"):
        [score] = metrics.score_case(segmenter.segment(case.image).mask, case.mask, 2, None)
        expected[case.key] = score.strict_dsc
    assert {row["case"]: float(row["dsc_strict"]) for row in table(test_dir, "test")} == pytest.approx(expected)

    # One version, whose val scores are the cross-validation; cases that any member saw are never passed over.
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    [version] = client.search_model_versions("name = 'rwkv_unet_polyps'")
    assert version.tags["split"] == "folds3_s41"
    assert json.loads(version.tags["scores.val"])["measured"]["trained_on"] == 0
    assert json.loads(version.tags["scores.test"])["values"]["test/dsc_strict/mean"] == tested["mean"]["dsc_strict"]
    again, _ = evaluated(home, "models:/rwkv_unet_polyps/1", "again", part="val")
    assert again["mean"]["dsc_strict"] == found["mean"]["dsc_strict"]
    one, _ = evaluated(home, "cv", "one", part="val", split=splits[1])
    assert one["measured"]["trained_on"] == len(held_out[1])
    children = [run for run in mlflow_runs(home) if run.data.tags.get("mlflow.parentRunId")]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {run_folder.mlflow_run_id(run_dir)}
    assert len(children) == 3


@pytest.mark.slow
def test_a_cross_validation_that_was_stopped_trains_only_what_is_left(
    data: Path, home: Path, monkeypatch: pytest.MonkeyPatch
):
    spec = folds_spec(data, "2")
    run_dir = run_folder.create(spec, str(home / "runs"))
    train, trained = trial.train, list[str]()

    def stopped(fields: dict[str, Any], folder: Path, **options: Any) -> trial.Outcome:
        trained.append(folder.name)
        if len(trained) == 2:
            raise KeyboardInterrupt
        return train(fields, folder, **options)

    monkeypatch.setattr(trial, "train", stopped)
    with pytest.raises(KeyboardInterrupt):
        drive(spec, run_dir)
    assert not (run_dir / "model").exists()
    kept = (run_dir / "trials" / "cv-0000" / "model" / "weights.safetensors").read_bytes()
    result = drive(spec, run_dir)
    assert trained == ["cv-0000", "cv-0001", "cv-0001"]
    assert (run_dir / "model" / "fold0" / "weights.safetensors").read_bytes() == kept
    assert len(result["cross_validation"]["folds"]["each"]) == 2


def test_a_fold_that_cannot_be_trained_leaves_no_ensemble(data: Path, home: Path):
    spec = folds_spec(data, "2", "optimizer.lr=1e30", "train.epoch_steps=3", "tracking.register_as=''")
    run_dir = run_folder.create(spec, str(home / "runs"))
    with pytest.raises(JobFailedError, match=r"folds2_s41_fold0: has no model \(diverged: .*so there is no ensemble"):
        drive(spec, run_dir)
    assert not (run_dir / "model").exists()


def test_which_folds_are_meant(data: Path):
    manifest = Manifest.load(data)
    new = cross_validation.find(manifest, "3")
    assert (new.name, new.are_new, len(new.splits)) == ("folds3_s41", True, 3)
    plan = cross_validation.lines(manifest, new)
    assert plan["folds"] == "folds3_s41, to be added to the data set"
    assert plan["fold 0"].startswith("train 9 (9 leak groups), val 5 (5 leak groups), test 2 (2 leak groups); none is")
    assert "folds3_s41_fold0" not in Manifest.load(data).splits
    add_folds(data, 3)
    there = cross_validation.find(Manifest.load(data), "folds3_s41")
    assert not there.are_new
    assert there.splits == new.splits
    assert cross_validation.find(Manifest.load(data), "3") == there


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("99", r"--folds 99: give 2 to 14, the number of groups"),
        ("1", r"--folds 1: give 2 to 14"),
        ("mine", r"--folds mine: polyps has no splits mine_fold0, mine_fold1 ...; give a number of folds"),
    ],
)
def test_folds_that_there_cannot_be(data: Path, asked: str, said: str):
    with pytest.raises(UserError, match=said):
        cross_validation.find(Manifest.load(data), asked)


def test_members_must_be_those_of_the_ensemble(data: Path, home: Path, tmp_path: Path):
    from .test_evaluate import untrained

    for seed in (1, 2):
        untrained(data, tmp_path / f"m{seed}", seed)
    info = members.save(tmp_path / "both", {"fold0": tmp_path / "m1", "fold1": tmp_path / "m2"}, {"split": "x"})
    assert [folder.name for folder in members.folders(tmp_path / "both")] == ["fold0", "fold1"]
    with pytest.raises(
        UserError, match=r"both: is an ensemble of 2 models, and this takes one: name a member, as .*fold0"
    ):
        bundle.load(tmp_path / "both")
    spec = ServeSpec(
        model=str(tmp_path / "both"), storage=str(home / "runs"), tracking={"uri": f"sqlite:///{home / 'mlflow.db'}"}
    )
    with pytest.raises(UserError, match=r"both: is an ensemble of 2 models, and this takes one"):
        serve.check(spec, home)
    shutil.rmtree(tmp_path / "both" / "fold1")
    shutil.copytree(tmp_path / "m1", tmp_path / "both" / "fold1")
    with pytest.raises(UserError, match=r"its members are not those of model.json"):
        members.check(tmp_path / "both")
    bundle.write_info(tmp_path / "both", info.model_copy(update={"extra": {"members": ["../m1"]}}))
    with pytest.raises(UserError, match=r"extra.members: must be names of folders beside it"):
        members.folders(tmp_path / "both")


# Classifiers --------------------------------------------------------------------------------------------------------


@pytest.fixture
def classed(tmp_path: Path) -> Path:
    """Three classes, two images of a patient."""
    tree = synth.write("imagetable:column", tmp_path / "tree", n=36, size=32)
    return prepare("imagetable", [tree], tmp_path / "classed").root


def probabilities(folder: Path, reader: Reader, rows: Sequence[int]) -> np.ndarray:
    """By timm's network alone."""
    info = bundle.read_info(folder)
    arguments = dict(info.model)
    network = timm.create_model(arguments.pop("name"), **arguments).eval()
    network.load_state_dict(load_file(folder / "weights.safetensors"))
    images = torch.stack([eval_pixels(reader.image(row), (32, 32)) for row in rows])
    with torch.inference_mode():
        return torch.softmax(network(to_input(images, torch.device("cpu"))).double(), 1).numpy()


@pytest.mark.slow
def test_a_cross_validation_of_classifiers(classed: Path, home: Path, tmp_path: Path):
    base = assemble.training_spec(
        "pretrain", None, str(classed), {"model": {"name": "rwkv_unet_enc_xt"}},
        [*TINY, "optimizer.warmup_epochs=0"], None,
    )  # fmt: skip
    assert isinstance(base, PretrainSpec)
    found = cross_validation.find(Manifest.load(classed), "3")
    spec = cross_validation.spec_of(base, found, concurrency=None, name="cv")
    cross_validation.add(str(classed), found)
    run_dir = run_folder.create(spec, str(home / "runs"))
    result = drive(spec, run_dir)

    manifest = Manifest.load(classed)
    splits = [f"folds3_s41_fold{n}" for n in range(3)]
    rows = {row["case"]: row for row in table(run_dir, "val")}
    assert len(rows) == sum(len(manifest.ids(split, "val")) for split in splits)
    right = []
    for number, folder in enumerate(members.folders(run_dir / "model")):
        assert bundle.read_info(folder).extra["split"] == splits[number]
        reader = reader_for(manifest, manifest.ids(splits[number], "val"))
        expected = probabilities(folder, reader, range(len(reader)))
        for row, own in enumerate(expected):
            said = rows[reader.key(row)]
            assert said["fold"] == str(number)
            assert [float(said[f"p_{name}"]) for name in manifest.classes] == pytest.approx(own.tolist(), abs=2e-6)
            right.append(own.argmax() == reader.label(row))
    scores = result["cross_validation"]
    assert scores["mean"]["accuracy"] == pytest.approx(np.mean(right))
    assert scores["measured"] | {"code": ""} == scores["measured"] | {"code": "", "part": "val", "trained_on": 0}
    each = [one["accuracy"] for one in scores["folds"]["each"]]
    assert scores["folds"]["mean"]["accuracy"] == pytest.approx(np.mean(each))
    assert "<h2>Folds</h2>" in (run_dir / "artifacts" / "val" / "evaluation.html").read_text()

    # The test part, and photographs of one's own, by the mean of all.
    tested, test_dir = evaluated(home, "models:/rwkv_unet_enc_xt/1", "tested")
    reader = reader_for(manifest, manifest.ids(splits[0], "test"))
    mean = np.mean([probabilities(m, reader, range(len(reader))) for m in members.folders(run_dir / "model")], axis=0)
    assert (tested["measured"]["part"], tested["cases"]) == ("test", len(reader))
    for row, own in zip(table(test_dir, "test"), mean, strict=True):
        assert [float(row[f"p_{name}"]) for name in manifest.classes] == pytest.approx(own.tolist(), abs=2e-6)
    Image.fromarray(reader.image(0)).save(tmp_path / "photo.png")
    predicted = PredictSpec(
        name="said", model="cv", inputs=[str(tmp_path / "photo.png")], out=str(tmp_path / "out"),
        storage=str(home / "runs"), tracking={"uri": f"sqlite:///{home / 'mlflow.db'}"},
    )  # fmt: skip
    assert guarded("predict", str(run_folder.create(predicted, str(home / "runs"))), []) == 0
    [said] = csv.DictReader((tmp_path / "out" / "classes.csv").read_text().splitlines())
    assert [float(said[f"p_{name}"]) for name in manifest.classes] == pytest.approx(mean[0].tolist(), abs=2e-6)


def test_a_sweep_varies_no_classifier(classed: Path):
    base = assemble.training_spec("pretrain", None, str(classed), {}, [*TINY, "optimizer.warmup_epochs=0"], None)
    assert isinstance(base, PretrainSpec)
    spec = cross_validation.spec_of(
        base, cross_validation.find(Manifest.load(classed), "3"), concurrency=None, name=None
    )
    assert [goal.metric for goal in spec.goals] == ["top1"]
    assert run_folder.default_name(spec).startswith("pretrain-folds3_s41-")
    with pytest.raises(ValueError, match="base: a sweep varies a fine-tuning; of classifiers there are folds alone"):
        TuneSpec.model_validate(spec.model_dump(mode="json", by_alias=True) | {"folds": None})
