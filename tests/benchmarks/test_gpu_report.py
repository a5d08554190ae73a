"""The report of a machine with a GPU, as far as it goes without one."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from types import ModuleType

import pytest
import torch

SCRIPTS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(SCRIPTS)
    import gpu_report

    return gpu_report


@pytest.fixture
def precision(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(SCRIPTS)
    import bench_precision

    return bench_precision


def test_two_steps_in_bf16_and_float32(precision: ModuleType, tmp_path: Path):
    forms = ["bf16 eager", "float32"]
    found = precision.compare("rwkv_unet_xt", 32, 2, 2, "cpu", forms, tmp_path / "figures.json")
    assert json.loads((tmp_path / "figures.json").read_text()) == found
    full, half = found["float32"], found["bf16 eager"]
    assert full["first_loss"] == pytest.approx(math.log(9), rel=0.15)  # knows nothing yet
    assert half["first_loss"] != full["first_loss"]
    assert half["first_loss"] == pytest.approx(full["first_loss"], rel=0.01)
    assert half["difference"] == pytest.approx(abs(half["loss"] - full["loss"]) / full["loss"])
    assert half["same"] == (half["difference"] <= 0.02)
    assert full["images_per_second"] > 0


def test_images_repeat_and_a_fifth_of_their_labels_is_random(precision: ModuleType):
    images, targets = precision.make_images(16, 48, "cpu")
    again, _ = precision.make_images(16, 48, "cpu")
    assert torch.equal(images, again)
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert targets.unique().tolist() == list(range(9))
    corner = targets[:, :2, :2]  # where hardly a disk reaches: background but for 8/9 of the random labels
    assert (corner == 0).double().mean() == pytest.approx(1 - 0.2 * 8 / 9, abs=0.15)


@pytest.mark.parametrize(
    ("code", "limit", "status"),
    [
        ("pass", 300, "ran"),
        ("import not_there.at_all", 300, "left out: no module not_there"),
        ("import timm_of_another_name", 300, "left out: no module timm_of_another_name"),
        ("import rwkvctl.no_such_file", 300, "failed: exit code 1"),
        ("print('No module named smp'); raise SystemExit('out of memory')", 300, "failed: exit code 1"),
        ("import time; time.sleep(600)", 1, "failed: stopped after 1 s"),
    ],
)
def test_what_became_of_a_part(report: ModuleType, tmp_path: Path, code: str, limit: float, status: str):
    assert report.run(report.Part("part", limit, ["-c", code]), tmp_path, limit)["status"] == status


def test_pytest_counts(report: ModuleType):
    assert report.counts("F..\n=== 2 failed, 227 passed, 1 skipped in 80.21s (0:01:20) ===\n") == {
        "failed": 2,
        "passed": 227,
        "skipped": 1,
    }


def test_a_stopped_part_leaves_what_it_has_measured_and_the_next_one_runs(report: ModuleType, tmp_path: Path):
    write = "import pathlib, sys; pathlib.Path(sys.argv[2]).write_text('{\"a\": 1}'); "
    parts = [report.Part(name, 300, ["-c", code]) for name, code in (("one", write + "1 / 0"), ("two", write))]
    found = dict(report.run_all(parts, tmp_path))
    assert [part["status"] for part in found.values()] == ["failed: exit code 1", "ran"]
    assert [part["figures"] for part in found.values()] == [{"a": 1}, {"a": 1}]
    assert "ZeroDivisionError" in (tmp_path / "one.log").read_text()


def test_goals(report: ModuleType):
    rates = {"rwkv_unet_b eager": 1200.0, "rwkv_unet_b compiled": 1580.0, "rwkv_unet_t eager": 3999.0}
    rows = {"scan": {"of_copy": 0.9}, "triton": {"of_copy": 0.5}, "cuda": {"of_copy": 0.8}}
    steps = {"plain loop, data in memory": 1000.0, "our loader alone": 1100.0}
    found = report.goals(
        {
            "model": {"figures": {"training 224 bfloat16": rates}},
            "wkv": {"figures": {"128,784,576": {"forward": rows}}},
            "step": {"figures": {name: {"images_per_second": rate} for name, rate in steps.items()}},
            "precision": {"figures": {"bf16 eager": {"difference": 0.01}}},
            "evaluate": {"status": "left out: no module medpy"},
        }
    )
    reached = {goal["name"].split(",")[0]: (goal["value"], goal["met"]) for goal in found if goal["value"] is not None}
    assert reached == {
        "rwkv_unet_b": (1580.0, True),
        "rwkv_unet_t": (3999.0, False),
        "operator": (0.8, True),
        "loader alone": (1.1, False),
        "bf16 eager": (0.01, True),
    }
    assert all(goal["met"] is None for goal in found if goal["value"] is None)


def test_all_parts_together_take_less_than_ten_minutes(report: ModuleType):
    args = argparse.Namespace(device="cuda", model=None, size=None, batch=None, steps=None, tests=["tests/biwkv"])
    parts = report.make_parts(args)
    assert tuple(part.name for part in parts) == report.PARTS
    assert sum(part.seconds for part in parts) <= 580
    assert all(Path(part.command[0]).exists() for part in parts[1:])
