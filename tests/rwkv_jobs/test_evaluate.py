"""Scores of a trained model: both conventions, volumes slice by slice, the same for any number of workers."""

from __future__ import annotations

import csv
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mlflow import MlflowClient

from rwkv_jobs import evaluate
from rwkv_jobs.entry import guarded
from rwkvctl.config.specs.jobs import EvaluateSpec
from rwkvctl.data.feed.cases import iter_cases
from rwkvctl.data.store.manifest import Manifest
from rwkvctl.models import bundle
from rwkvctl.models.inference import segment_image
from rwkvctl.registry import measured
from rwkvctl.runs import folder as run_folder
from rwkvctl.runs.journal import Journal
from rwkvctl.runs.sync import Syncer
from rwkvctl.training import metrics

from .conftest import PATIENCE, Jobs, mlflow_history, mlflow_runs
from .test_workers import free_port


@pytest.fixture(scope="session")
def models(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model folders `polyps`, `hearts` (untrained, but not blank) and `textures`."""
    folder = tmp_path_factory.mktemp("models")
    for name in ("polyps", "hearts", "textures"):
        untrained(shards / name, folder / name, seed=3)
    return folder


def untrained(data: Path, folder: Path, seed: int, variant: str = "t") -> None:
    """A model folder of a network of the seed's for a data set."""
    from rwkvctl.config.specs.parts import EncoderSpec, ModelSpec
    from rwkvctl.models.build import classifier, outputs, segmentation_network

    manifest = Manifest.load(data)
    torch.manual_seed(seed)
    if manifest.task == "classification":
        model = classifier(EncoderSpec(name=f"rwkv_unet_enc_{variant}"), manifest.classes)
        described: dict[str, Any] = {"name": f"rwkv_unet_enc_{variant}", "num_classes": len(manifest.classes)}
    else:
        model = segmentation_network(ModelSpec(name="rwkv_unet_t"), manifest.classes)
        described = {"name": "rwkv_unet_t", "num_classes": outputs(manifest.classes)}
    info = bundle.BundleInfo(
        model=described,
        classes=manifest.classes,
        image_size=32,
        image_kind=manifest.image_kind,
        channels=manifest.channels,
        dataset=data.name,
        fingerprint=manifest.fingerprint,
        intensity=manifest.content.intensity,
        orientation=manifest.content.orientation,
        extra={"data": str(data), "split": manifest.default_split},
    )
    bundle.save(folder, model.state_dict(), info)


def new(jobs: Jobs, name: str, model: Path, **fields: Any) -> Path:
    spec = EvaluateSpec.model_validate(
        {"name": name, "model": str(model), "cluster": {"launcher": "process"}, "storage": str(jobs.runs)}
        | {"tracking": {"uri": f"sqlite:///{jobs.home / 'mlflow.db'}"}}
        | fields
    )
    return run_folder.create(spec, str(jobs.runs))


def result(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "result.json").read_text())


@pytest.mark.parametrize("name", ["polyps", "hearts"])
def test_scores_are_those_of_the_cases(jobs: Jobs, models: Path, shards: Path, name: str):
    run_dir = new(jobs, "eval", models / name, overlays=2)
    assert guarded("evaluate", str(run_dir), []) == 0
    found = result(run_dir)
    manifest = Manifest.load(shards / name)
    model, _ = bundle.load(models / name)
    cases = {}
    for case in iter_cases(manifest, split=None, part="test"):
        slices = case.image if case.mask.ndim == 3 else [case.image]
        masks = [
            segment_image(model, image, image_size=32, image_kind=manifest.image_kind, device="cpu") for image in slices
        ]
        mask = np.stack(masks) if case.mask.ndim == 3 else masks[0]
        cases[case.key] = metrics.score_case(mask, case.mask, len(manifest.classes), case.spacing_mm)
    [first, *_] = csv.DictReader((run_dir / "artifacts" / "test" / "cases.csv").read_text().splitlines())
    assert first["review_rank"] in "1234"
    assert 0 <= found["calibration"]["ece"] <= 1
    assert found["review"]["cases"] <= len(cases)
    expected = json.loads(json.dumps(metrics.summarise(cases, manifest.classes)))
    assert {key: found[key] for key in expected} == expected
    for convention in ("strict", "official"):
        assert 0 <= found["mean"][f"dsc_{convention}"] <= 1
        assert f"hd95_vox_{convention}" in found["mean"]
    rows = list(csv.DictReader((run_dir / "artifacts" / "test" / "cases.csv").read_text().splitlines()))
    assert len(rows) == len(cases) * (len(manifest.classes) - 1)
    assert len(list((run_dir / "artifacts" / "test" / "overlays").glob("*.png"))) == min(2, len(cases))
    page = (run_dir / "artifacts" / "test" / "evaluation.html").read_text()
    assert ("data-volume=volume" in page) == (name == "hearts")
    assert all(f"<td>{key}</td>" in page for key in cases)
    journal = [json.loads(line) for line in (run_dir / "journal.jsonl").read_text().splitlines()]
    named = [entry["path"] for entry in journal if entry["kind"] == "artifact"]
    assert [named.count(f"artifacts/test/{file}") for file in ("cases.csv", "evaluation.html")] == [1, 1]
    [tracked] = mlflow_runs(jobs.home)
    sent = {key: value for key, _, value in mlflow_history(jobs.home, tracked)}
    assert sent["test/dsc_strict/mean"] == found["mean"]["dsc_strict"]
    assert sent["test/ece/mean"] == found["calibration"]["ece"]
    assert (tracked.info.status, tracked.info.run_id) == ("FINISHED", found["run_id"])


def test_lesions_tolerances_and_intervals_are_in_the_summary_and_the_table_of_cases(jobs: Jobs, models: Path):
    asked = {"lesions": True, "nsd_tolerance_vox": 3.0}
    run_dir = new(jobs, "eval", models / "polyps", **asked)
    assert guarded("evaluate", str(run_dir), []) == 0
    summary = json.loads((run_dir / "summary.json").read_text())
    mean, cases = summary["mean"], summary["cases"]
    assert mean["lesions"] > 0
    assert 0 <= mean["lesion_f1_strict"] <= 1
    assert summary["nsd_tolerance"] == {"mm": 1.0, "vox": 3.0}
    assert summary["intervals"]["over"] == f"{cases} cases"
    low, high = summary["intervals"]["mean"]["dsc_official"]
    assert low <= mean["dsc_official"] <= high
    [first, *_] = csv.DictReader((run_dir / "artifacts" / "test" / "cases.csv").read_text().splitlines())
    assert {"nsd_vox_strict_at_3", "nsd_mm_strict", "iou_strict", "lesions_found", "lesion_recall_strict"} < set(first)
    [tracked] = mlflow_runs(jobs.home)
    sent = {key: value for key, _, value in mlflow_history(jobs.home, tracked)}
    assert sent["test/nsd_vox_strict_at_3/mean"] == mean["nsd_vox_strict_at_3"]
    assert "test/nsd_vox_strict/mean" not in sent


def test_lesions_are_counted_in_data_sets_of_lesions_or_on_demand(jobs: Jobs, models: Path, shards: Path):
    spec = run_folder.read_spec(new(jobs, "eval", models / "polyps"))
    assert isinstance(spec, EvaluateSpec)
    own = Manifest.load(shards / "polyps")
    source = own.content.source.model_copy(update={"format": "kvasir"})
    known = replace(own, content=own.content.model_copy(update={"source": source}))
    for manifest, asked, counted in ((own, None, False), (own, True, True), (known, None, True), (known, False, False)):
        choices = evaluate.choices_of(spec.model_copy(update={"lesions": asked}), manifest)
        assert choices.lesions == counted


def test_a_classifier_is_scored_by_its_accuracy(jobs: Jobs, models: Path):
    run_dir = new(jobs, "eval", models / "textures", part="val")
    assert guarded("evaluate", str(run_dir), []) == 0
    assert result(run_dir)["top5"] == 100
    assert result(run_dir)["top1"] in [100 * right / 3 for right in range(4)]


@pytest.mark.parametrize("name", ["hearts", "textures"])
def test_two_workers_score_as_one(jobs: Jobs, models: Path, children: list[Any], name: str):
    one = new(jobs, "one", models / name, part="val")
    assert guarded("evaluate", str(one), []) == 0
    two = new(jobs, "two", models / name, part="val", cluster={"launcher": "process", "workers": 2})
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    children += [jobs.start("evaluate", two, RANK=str(rank), **group) for rank in range(2)]
    for process in children:
        process.join(PATIENCE)
    assert [process.exitcode for process in children] == [0, 0], two.with_suffix(".log").read_text()
    same = {"run", "run_id"}
    assert {k: v for k, v in result(two).items() if k not in same} == {
        k: v for k, v in result(one).items() if k not in same
    }


@pytest.mark.parametrize(
    ("model", "fields", "said"),
    [
        ("nowhere", {}, "is not in"),
        ("polyps", {"data": "{shards}/hearts"}, "has the classes background, "),
        ("polyps", {"data": "{shards}/nothing"}, "no prepared data set here"),
        ("polyps", {"split": "nope"}, "nope"),
        ("damaged", {}, "SHA-256"),
    ],
)
def test_mistakes_leave_no_run(
    jobs: Jobs,
    models: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    model: str,
    fields: dict[str, str],
    said: str,
):
    shutil.copytree(models / "polyps", tmp_path / "damaged")
    weights = tmp_path / "damaged" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    folder = {"polyps": models / "polyps", "damaged": tmp_path / "damaged"}.get(model, Path(model))
    run_dir = new(jobs, "eval", folder, **{key: value.format(shards=jobs.shards) for key, value in fields.items()})
    assert guarded("evaluate", str(run_dir), []) == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if line]
    assert said in line
    assert not run_dir.exists()
    assert mlflow_runs(jobs.home) == []


def synced(folder: Path, uri: str) -> Path:
    """A run that MLflow knows."""
    Journal(folder / "journal.jsonl").close()
    Syncer(folder, uri, "e").push()
    return folder


def test_a_gate_counts_the_models_own_test_part_and_says_what_was_trained_on(
    jobs: Jobs, models: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    from rwkvctl.data.convert.prepare import prepare
    from rwkvctl.data.convert.synth import phantom
    from rwkvctl.registry.promote import promote
    from rwkvctl.registry.register import register
    from rwkvctl.registry.release import note_scores
    from rwkvctl.registry.versions import show

    uri = f"sqlite:///{jobs.home / 'mlflow.db'}"
    own = new(jobs, "own", models / "polyps")
    assert guarded("evaluate", str(own), []) == 0
    training = synced(tmp_path / "training", uri)
    register(training, models / "polyps", "net", tracking_uri=uri)
    phantom.write_polyps(tmp_path / "polyps", n=16, size=40)  # the same images
    again = prepare("folder", [tmp_path / "polyps"], tmp_path / "again", seeds=[7])
    train, test = Manifest.load(shards / "polyps").ids(None, "train"), again.ids(None, "test")
    shared = len({key.rsplit("_", 1)[1] for key in train} & {key.rsplit("_", 1)[1] for key in test})
    assert shared > 0
    capsys.readouterr()
    other = new(jobs, "other", models / "polyps", data=str(again.root))
    assert guarded("evaluate", str(other), []) == 0
    said = f"{shared} of {len(test)} test cases were trained on: these are not valid test scores"
    assert said in "".join(capsys.readouterr())
    assert result(other)["measured"]["trained_on"] == shared
    assert result(own)["measured"]["trained_on"] == 0
    [version] = show("net", uri)
    assert version.metrics == {}
    client = MlflowClient(uri, registry_uri=uri)
    [(_, elsewhere)] = measured.of_other_data(client.get_model_version("net", "1").tags)
    assert "test/dsc_strict/mean" in elsewhere.values
    with pytest.raises(ValueError, match="measured on other data only"):
        promote("net", 1, "champion", gates=["dsc_strict>=0"], tracking_uri=uri)
    assert note_scores(own, uri) == ["models:/net/1"]
    [version] = show("net", uri)
    assert version.metrics["test/dsc_strict/mean"] == result(own)["mean"]["dsc_strict"]
    found = client.get_model_version("net", "1")
    assert json.loads(found.tags["scores.test"])["measured"]["cases"] == 2
    assert len(found.tags) <= 10
    [run] = [run for run in mlflow_runs(jobs.home) if run.info.run_name == "own"]
    [data] = run.inputs.dataset_inputs
    assert (data.dataset.name, data.tags[0].value) == (f"polyps/{result(own)['measured']['split']}/test", "testing")
    assert json.loads(data.dataset.profile)["num_rows"] == 2
    models_of = client.get_run(run.info.run_id).inputs.model_inputs
    assert [each.model_id for each in models_of] == [version.tags["logged_model"]]
    assert promote("net", 1, "champion", gates=["dsc_strict>=0"], tracking_uri=uri)
    assert guarded("evaluate", str(new(jobs, "again", models / "polyps")), []) == 0
    card = client.get_model_version("net", "1").description
    assert len([line for line in card.splitlines() if line.startswith(("| test | ece |", "| test | ece_raw |"))]) == 2
    [row] = [line for line in card.splitlines() if line.startswith("| test | dsc_strict |")]
    assert re.fullmatch(r"\| test \| dsc_strict \| [\d.]+ \| [\d.]+ to [\d.]+ \| 2 \|", row), row


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("image_kind", "float", "has images of kind rgb8, the model has float"),
        ("channels", 1, "has channels: 3, the model has 1"),
        ("intensity", {"clip": [-125, 275], "scale": "x"}, "has the intensity rule none, the model has {"),
        ("orientation", "RAS", "has the orientation none, the model has RAS"),
        (
            "classes",
            ["background", "kidney"],
            "has the classes background, foreground, the model has background, kidney",
        ),
    ],
)
def test_data_of_another_kind_than_the_models_is_refused_by_field(
    jobs: Jobs, models: Path, tmp_path: Path, field: str, value: Any, said: str
):
    other = shutil.copytree(models / "polyps", tmp_path / "other")
    spec = run_folder.read_spec(new(jobs, "eval", other))
    own = json.loads((other / "model.json").read_text())
    for fingerprint in ("beef" * 16, own["fingerprint"]):  # the second says one thing and its fields another
        (other / "model.json").write_text(json.dumps(own | {field: value, "fingerprint": fingerprint}))
        with pytest.raises(ValueError, match=re.escape(said)):
            evaluate.check(spec, jobs.runs / "eval")  # type: ignore[arg-type]


def test_an_old_model_folder_that_lacks_the_orientation_fits_its_own_data(jobs: Jobs, models: Path, tmp_path: Path):
    old = shutil.copytree(models / "hearts", tmp_path / "old")
    content = json.loads((old / "model.json").read_text())
    for field in ("orientation", "intensity"):
        content.pop(field, None)
    (old / "model.json").write_text(json.dumps(content))
    evaluate.check(run_folder.read_spec(new(jobs, "eval", old)), jobs.runs / "eval")  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_pretrained_timm_classifier_is_scored_starts_a_network_and_makes_no_masks(
    jobs: Jobs, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert jobs.run("pretrain", "enc", "model.name=resnet10t", "train.epochs=1", "optimizer.warmup_epochs=0") == 0
    own = "data.path=" + str(shards / "textures")
    scored = new(jobs, "eval", jobs.runs / "enc" / "model", part="val", data=own.removeprefix("data.path="))
    assert guarded("evaluate", str(scored), []) == 0
    assert result(scored)["top1"] == result(jobs.runs / "enc")["top1"]
    tuned = ["model.encoder=resnet10t", "model.encoder_weights=enc", "train.epochs=1"]
    assert jobs.run("finetune", "net", *tuned) == 0
    capsys.readouterr()
    run_dir = new(jobs, "masks", jobs.runs / "enc" / "model", data=str(shards / "polyps"))
    assert guarded("evaluate", str(run_dir), []) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "resnet10t is a pretrained classifier, which makes no masks" in line
    assert not run_dir.exists()


def test_a_model_says_which_data_it_knows(jobs: Jobs, models: Path, tmp_path: Path):
    bare = shutil.copytree(models / "polyps", tmp_path / "bare")
    content = json.loads((bare / "model.json").read_text()) | {"extra": {}}
    (bare / "model.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="does not record which data it was trained on; give --data"):
        evaluate.check(run_folder.read_spec(new(jobs, "eval", bare)), jobs.runs / "eval")  # type: ignore[arg-type]
