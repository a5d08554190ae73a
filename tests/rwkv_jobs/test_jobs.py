"""Whole jobs in one process, as a table: (name, kind, overrides, what must hold afterwards)."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from rwkv_jobs import finetune
from rwkv_jobs.progress import Progress
from rwkv_jobs.worker import named_if_not_deterministic
from rwkvctl.base.errors import UserError
from rwkvctl.config.specs.jobs import FinetuneSpec
from rwkvctl.data.convert.prepare import prepare
from rwkvctl.data.convert.synth import phantom
from rwkvctl.data.store.manifest import Manifest
from rwkvctl.models import bundle
from rwkvctl.runs import folder as run_folder
from rwkvctl.runs.journal import Journal

from .conftest import Jobs, events, history, latest, mlflow_history, mlflow_runs

Check = Callable[[Path, dict[str, Any]], None]


def position(run_dir: Path) -> dict[str, Any]:
    return json.loads((latest(run_dir) / "state.json").read_text())["position"]


def trained(steps: int, epochs: int) -> Check:
    def check(run_dir: Path, result: dict[str, Any]) -> None:
        found = position(run_dir)
        assert (found["step"], found["epoch"], found["consumed"]) == (steps, epochs, 0)
        losses = [(step, value) for key, step, value in history(run_dir) if key == "train/loss"]
        assert [step for step, _ in losses] == list(range(1, steps + 1))
        assert all(math.isfinite(value) for _, value in losses)

    return check


def both_conventions(run_dir: Path, result: dict[str, Any]) -> None:
    mean = result["val"]["mean"]
    for name in ("dsc_strict", "dsc_official"):
        assert 0 <= mean[name] <= 1
    assert {"hd95_vox_strict", "hd95_vox_official", "undefined_hd95", "both_empty"} <= set(mean)
    assert (run_dir / "artifacts" / "val" / "cases.csv").read_text().count("\n") > 1
    calibration = json.loads((run_dir / "model" / "model.json").read_text())["calibration"]
    assert calibration is None or (calibration["temperature"] > 0 and calibration["part"] == "val")
    assert result["val"]["calibration"]["temperature"] == 1


def classes(*names: str) -> Check:
    def check(run_dir: Path, result: dict[str, Any]) -> None:
        assert list(result["val"]["classes"]) == list(names)

    return check


def output_channels(count: int) -> Check:
    def check(run_dir: Path, result: dict[str, Any]) -> None:
        assert json.loads((run_dir / "model" / "model.json").read_text())["model"]["num_classes"] == count

    return check


def no_scores(run_dir: Path, result: dict[str, Any]) -> None:
    assert "val" not in result
    assert not any(key.startswith("val/") for key, _, _ in history(run_dir))
    assert latest(run_dir).name == result["checkpoint"]


def rates(*expected: float) -> Check:
    def check(run_dir: Path, result: dict[str, Any]) -> None:
        found = [value for key, _, value in history(run_dir) if key == "train/lr"]
        assert found == pytest.approx(list(expected))

    return check


def averaged(run_dir: Path, result: dict[str, Any]) -> None:
    assert (latest(run_dir) / "ema.safetensors").exists()
    assert any(key == "val_ema/top1" for key, _, _ in history(run_dir))
    assert 0 <= result["top1"] <= result["top5"] == 100


def not_averaged(run_dir: Path, result: dict[str, Any]) -> None:
    assert not (latest(run_dir) / "ema.safetensors").exists()
    assert result["weights"] == "model"


def smaller_than_published(run_dir: Path, result: dict[str, Any]) -> None:
    assert result["parameters"] < 3_145_761  # of the published one
    assert json.loads((run_dir / "model" / "model.json").read_text())["model"]["ccm"] is False


def scaled(run_dir: Path, result: dict[str, Any]) -> None:
    assert position(run_dir)["scaler"]["scale"] > 1


def average_scored(run_dir: Path, result: dict[str, Any]) -> None:
    assert (latest(run_dir) / "ema.safetensors").exists()
    assert any(key == "val_ema/dsc_strict/mean" for key, _, _ in history(run_dir))
    assert result["weights"] == position(run_dir)["best_weights"]


def profiled(run_dir: Path, result: dict[str, Any]) -> None:
    """A trace that another program reads, and the dearest operators."""
    folder = run_dir / "artifacts" / "profile"
    assert json.loads(gzip.decompress((folder / "trace.json.gz").read_bytes()))["traceEvents"]
    assert "aten::" in (folder / "operators.txt").read_text()


def patches(run_dir: Path, result: dict[str, Any]) -> None:
    """What was planned stands in the run's spec, and in the model's folder."""
    spec = run_folder.read_spec(run_dir)
    assert isinstance(spec, FinetuneSpec)
    assert spec.volumes is not None
    assert (spec.volumes.patch, spec.volumes.spacing) == ((8, 32, 32), "native")
    model, info = bundle.load(run_dir / "model")
    assert info.volumes == bundle.VolumeInput(patch=(8, 32, 32))
    assert model(torch.zeros(1, 1, 16, 32, 48)).shape == (1, 4, 16, 32, 48)


ONE_STEP = ["train.epochs=1", "train.epoch_steps=1"]
"""Enough for a choice that the loop does not see."""


PVT = ["model.encoder=pvt_v2_b0"]
"""The smallest."""


def deeply_supervised(run_dir: Path, result: dict[str, Any]) -> None:
    """The model folder makes the network again, which gives one map; each head has left its initial weights."""
    model, info = bundle.load(run_dir / "model")
    assert info.model["deep_supervision"] is True
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, info.model["num_classes"], 32, 32)
    spec = run_folder.read_spec(run_dir)
    before = finetune.make_model(spec, Manifest.load(spec.data.path), run_dir).state_dict()  # type: ignore[attr-defined,arg-type]
    heads = {name: x for name, x in model.state_dict().items() if "head" in name}
    assert len(heads) == 8  # weights and biases
    assert not [name for name, x in heads.items() if torch.equal(x, before[name])]


def precision(expected: str) -> Check:
    """What `auto` was resolved to stands in the spec, in the checkpoint and among the parameters."""

    def check(run_dir: Path, result: dict[str, Any]) -> None:
        assert run_folder.read_spec(run_dir).model_dump()["train"]["precision"] == expected
        assert json.loads((latest(run_dir) / "state.json").read_text())["spec"]["train"]["precision"] == expected
        [run] = mlflow_runs(run_dir.parent.parent)
        assert run.data.params["train.precision"] == expected
        assert run.data.params["cluster.cpus_per_worker"] == "1"
        assert events(run_dir, "param_changed") == []

    return check


TABLE: list[tuple[str, str, list[str], list[Check]]] = [
    ("binary", "finetune", [], [trained(6, 2), both_conventions, output_channels(1), classes("foreground")]),
    ("volumes", "hearts", [], [both_conventions, output_channels(4)]),
    ("wrap", "finetune", ["train.batch_size=8", "train.epochs=1", "train.tail=wrap"], [trained(2, 1)]),
    ("drop", "finetune", ["train.batch_size=8", "train.epochs=1", "train.tail=drop"], [trained(1, 1)]),
    ("no validation", "finetune", ["train.validate_every=0", *ONE_STEP], [trained(1, 1), no_scores]),
    ("ablation", "finetune", ["model.ccm=false", *ONE_STEP],
     [trained(1, 1), smaller_than_published, precision("fp32")]),
    ("semi-supervised", "cervix", ["train.epochs=1", "train.epoch_steps=2"], [trained(2, 1), output_channels(3)]),
    ("attention", "finetune", ["model.attention=mhsa", *ONE_STEP], [trained(1, 1)]),
    ("encoder", "finetune", ["model.encoder=resnet18", *ONE_STEP], [trained(1, 1)]),
    ("clipped, by step", "finetune",
     ["train.epochs=1", "optimizer.clip_grad=1", "optimizer.update=step", "optimizer.lr=2e-3", "optimizer.min_lr=0"],
     [trained(3, 1), rates(2e-3, 1.5e-3, 0.5e-3)]),
    ("bf16", "finetune", ["train.precision=bf16", *ONE_STEP], [trained(1, 1), precision("bf16")]),
    ("micro-batches", "finetune", ["train.micro_batch=2", *ONE_STEP], [trained(1, 1)]),
    ("fp16", "finetune", ["train.precision=fp16", *ONE_STEP], [trained(1, 1), precision("fp16"), scaled]),
    ("all of it", "finetune",
     ["freeze_encoder=1", "ema_decay=0.5", "optimizer.name=lamb", "optimizer.layer_decay=0.7",
      "train.deterministic=true", "train.on_nan=skip", "train.batch_norm=local", "train.profile_steps=1"],
     [trained(6, 2), average_scored, profiled]),
    ("patience", "finetune", ["train.epochs=9", "train.epoch_steps=1", "train.patience=1", "optimizer.lr=1e-12"],
     [trained(2, 2)]),
    ("loader processes", "finetune", ["train.epochs=1", "data.workers=1"], [trained(3, 1)]),
    ("patches of volumes", "volumes", ["deep_supervision=scales"],
     [trained(8, 2), both_conventions, output_channels(4), patches]),
    ("classes", "pretrain", [], [trained(6, 2), averaged]),
    ("no average", "pretrain", ["ema_decay=null", "train.epochs=1", "optimizer.warmup_epochs=0"],
     [trained(3, 1), not_averaged]),
]  # fmt: skip


SLOW: list[tuple[str, str, list[str], list[Check]]] = [
    ("mutation", "finetune",
     ["deep_supervision=mutation", "model.name=emcad", *PVT, "train.micro_batch=2", "train.precision=bf16", *ONE_STEP],
     [trained(1, 1), deeply_supervised]),
    ("deep supervision, semi-supervised", "cervix",
     ["deep_supervision=sum", "model.name=pvt_cascade", *PVT, *ONE_STEP], [trained(1, 1), deeply_supervised]),
]  # fmt: skip
ROWS = [pytest.param(*row[1:], id=row[0]) for row in TABLE]
ROWS += [pytest.param(*row[1:], id=row[0], marks=pytest.mark.slow) for row in SLOW]


@pytest.mark.parametrize(("kind", "overrides", "checks"), ROWS)
def test_jobs(jobs: Jobs, kind: str, overrides: list[str], checks: list[Check]):
    assert jobs.run(kind, "run", *overrides) == 0
    run_dir = jobs.runs / "run"
    result = json.loads((run_dir / "result.json").read_text())
    for check in checks:
        check(run_dir, result)
    tracked(jobs.home, run_dir, result)
    assert not list(run_dir.rglob("*.tmp"))
    assert not (run_dir / "lease.json").exists()


def tracked(home: Path, run_dir: Path, result: dict[str, Any]) -> None:
    """One MLflow run, equal to the journal, with the model registered from it."""
    [run] = mlflow_runs(home)
    assert (run.info.status, run.info.run_name, run.info.run_id) == ("FINISHED", "run", result["run_id"])
    assert sorted(mlflow_history(home, run)) == sorted(history(run_dir))
    assert run.data.params["macs_paper"] == str(result["macs_paper"])
    assert run.data.params["data_fingerprint"] == result["data_fingerprint"]
    assert run.data.params["train.batch_size"]
    assert result["model_uri"].endswith("/1")
    assert [event["status"] for event in events(run_dir, "end")] == ["FINISHED"]


def test_a_validation_part_without_foreground_keeps_the_last_weights(
    jobs: Jobs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    raw = phantom.write_polyps(tmp_path / "raw", n=16, size=40)
    made = prepare("folder", [raw], tmp_path / "first", seeds=[41])
    for key in made.ids(made.default_split, "val"):
        Image.new("L", (40, 40)).save(raw / "masks" / f"{int(key.split('_')[1])}.png")
    data = prepare("folder", [raw], tmp_path / "data", seeds=[41]).root
    assert jobs.run("finetune", jobs.new("finetune", "run", "train.epoch_steps=1", data=data)) == 0
    warning = "warning: no validation mask contains foreground, so validation scores mean nothing"
    assert capsys.readouterr().out.count(warning) == 1
    run_dir = jobs.runs / "run"
    folder = run_dir / "checkpoints"
    assert json.loads((folder / "best.json").read_text()) == json.loads((folder / "latest.json").read_text())


def test_another_number_of_images_for_batch_norm_is_said(jobs: Jobs, capsys: pytest.CaptureFixture[str]):
    """As where a run of two workers with local batch norm goes on with one."""
    run_dir = jobs.new("finetune", "run", *ONE_STEP)
    with Journal(run_dir / "journal.jsonl") as journal:
        journal.params({"batch_norm_images": 2})
    assert jobs.run("finetune", run_dir) == 0
    said = "warning: batch norm takes its statistics over 4 images from here on, and did over 2: "
    assert capsys.readouterr().out.count(said) == 1


def test_an_operator_that_cannot_repeat_is_named():
    torch.use_deterministic_algorithms(True)
    try:
        with pytest.raises(UserError, match=r"^train\.deterministic: put_ cannot repeat bit for bit on this device"):
            put_twice_in_one_place()
    finally:
        torch.use_deterministic_algorithms(False)


@named_if_not_deterministic()
def put_twice_in_one_place() -> None:
    torch.zeros(3).put_(torch.tensor([0, 0]), torch.ones(2))


def test_the_total_of_a_run_that_another_job_trains_is_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with Journal(tmp_path / "journal.jsonl") as journal:
        journal.event("plan", epochs=5, steps_per_epoch=100, step=0)
        journal.event("message", text="told before")
        with Progress(tmp_path):
            values = {"train/loss": 0.5, "train/lr": 1e-3, "train/grad_norm": 1.0, "train/images_per_second": 8.0}
            journal.metrics(values, 385)
    assert capsys.readouterr().out == "step 385/500  loss 0.5000  lr 1.00e-03  grad 1.000  8.0 img/s\n"
