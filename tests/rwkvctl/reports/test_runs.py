"""Runs beside one another: specs first, metrics by their direction, seeds together."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from rwkvctl.base.errors import UserError
from rwkvctl.cli.app import app
from rwkvctl.reports import runs as reports
from rwkvctl.runs.journal import Journal

DSC, LOSS = "val/dsc_strict/mean", "train/loss"


@pytest.fixture
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RWKVCTL_HOME", str(tmp_path))
    monkeypatch.setenv("RWKVCTL_STORAGE", str(tmp_path / "runs"))
    return tmp_path / "runs"


def run(storage: Path, name: str, lr: float, seed: int, dsc: list[float], **more: Any) -> Path:
    folder = storage / name
    folder.mkdir(parents=True)
    spec = {"job": "finetune", "name": name, "optimizer": {"lr": lr}, "seed": seed, "train": more}
    (folder / "spec.yaml").write_text(yaml.safe_dump(spec))
    with Journal(folder / "journal.jsonl") as journal:
        for number, value in enumerate(dsc, start=1):
            journal.metrics({DSC: value, LOSS: 1 - value}, step=10 * number)
        journal.event("end", status="FINISHED")
    return folder


def invoke(*words: str) -> str:
    result = CliRunner().invoke(app, ["run", "compare", *words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_the_best_comes_first_and_what_differs_is_told(storage: Path):
    run(storage, "low", 1e-4, 0, [0.5, 0.7, 0.6])
    run(storage, "high", 1e-3, 0, [0.8, 0.4, 0.2])
    found = json.loads(invoke("low", "high", "--json"))
    assert [row["run"] for row in found["runs"]] == ["high", "low"]
    assert found["runs"][0]["fields"] == {"optimizer.lr": "0.001"}, "not the name"
    assert found["runs"][1]["values"][DSC] == {"best": 0.7, "best_step": 20, "last": 0.6, "last_step": 30}
    assert found["seeds"] == []
    assert json.loads(invoke("low", "high", "--metric", "dsc_strict", "--json")) == found
    assert json.loads(invoke("low", "high", "--metric", "dsc_strict", "--json")) == found
    found = json.loads(invoke("low", "high", "--metric", LOSS, "--json"))
    assert found["runs"][0]["values"][LOSS]["best"] == pytest.approx(0.2), "of a loss less is better"
    text = invoke("low", "high")
    assert "optimizer.lr" in text
    assert "0.8000 (10)" in text


def test_at_a_step_the_last_value_before_it_counts(storage: Path):
    run(storage, "low", 1e-4, 0, [0.5, 0.7, 0.6])
    run(storage, "high", 1e-3, 0, [0.8, 0.4, 0.2])
    found = json.loads(invoke("low", "high", "--at", "25", "--json"))
    assert [(row["run"], row["values"][DSC]["best"]) for row in found["runs"]] == [("low", 0.7), ("high", 0.4)]


def test_seeds_of_one_spec_stand_together_with_their_spread(storage: Path):
    for seed, dsc in enumerate([0.7, 0.8, 0.9]):
        run(storage, f"a{seed}", 1e-4, seed, [dsc])
    run(storage, "b0", 1e-3, 0, [0.85])
    found = json.loads(invoke("a0", "a1", "a2", "b0", "--json"))
    [row] = found["seeds"]
    assert (row["run"], row["fields"]) == ("3 runs", {"optimizer.lr": "0.0001"})
    assert row["values"][DSC] == {"best": pytest.approx(0.8), "deviation": pytest.approx(0.1), "runs": 3}


def test_a_sweep_stands_for_its_trials_and_csv_has_every_field(storage: Path):
    sweep = storage / "sweep"
    sweep.mkdir(parents=True)
    (sweep / "spec.yaml").write_text(yaml.safe_dump({"job": "tune"}))
    for number in range(2):
        run(sweep / "trials", f"t{number}", 10.0 ** -(number + 3), 0, [0.5 + 0.1 * number], epochs=number + 1)
    rows = list(csv.DictReader(io.StringIO(invoke("sweep", "--csv"))))
    assert [row["run"] for row in rows] == ["t1", "t0"]
    assert rows[0]["train.epochs"] == "2"
    assert float(rows[0][f"{DSC} best"]) == 0.6


def test_a_curve_is_drawn(storage: Path, tmp_path: Path):
    run(storage, "low", 1e-4, 0, [0.5, 0.7])
    run(storage, "high", 1e-3, 0, [0.8])
    out = tmp_path / "curves.png"
    assert invoke("low", "high", "--metric", DSC, "--metric", LOSS, "--picture", str(out)).endswith(f"{out}\n")
    with Image.open(out) as picture:
        assert picture.height > 600


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("low",), "low: give two runs or more, or a sweep with two trials"),
        (("low", "low"), "give two runs or more"),
        (("low", "hihg"), "did you mean high"),
        (
            ("low", "high", "--metric", "val/dsc_strict/mena"),
            "none of the runs has it; did you mean val/dsc_strict/mean?",
        ),
        (("low", "high", "--picture", "x.gif"), "a figure ends in .png, .svg, .pdf"),
    ],
)
def test_wrong_input(storage: Path, words: tuple[str, ...], said: str):
    run(storage, "low", 1e-4, 0, [0.5])
    run(storage, "high", 1e-3, 0, [0.8])
    result = CliRunner().invoke(app, ["run", "compare", *words])
    assert isinstance(result.exception, UserError)
    assert said in str(result.exception)


def test_values_that_are_not_finite_and_torn_lines_do_no_harm(storage: Path):
    folder = run(storage, "odd", 1e-4, 0, [0.5, math.nan])
    with (folder / "journal.jsonl").open("ab") as file:
        file.write(b'{"t": 1, "kind": "metrics", "st')
    series = reports.read(folder).metric(DSC)
    assert series.best(smaller=False) == (10, 0.5)
    assert math.isnan(series.last()[1])


def evaluation(storage: Path, name: str, scores: list[float]) -> None:
    folder = run(storage, name, 1e-4, 0, [])
    (folder / "artifacts" / "test").mkdir(parents=True)
    rows = [f"case{number},polyp,{value}" for number, value in enumerate(scores)]
    (folder / "artifacts" / "test" / "cases.csv").write_text("\n".join(["case,class,dsc_strict", *rows, ""]))


def test_two_evaluations_are_compared_case_by_case(storage: Path):
    evaluation(storage, "ours", [0.9, 0.8, 0.7, 0.6, 0.9, 0.8])
    evaluation(storage, "theirs", [0.8, 0.7, 0.6, 0.5, 0.8, 0.7])
    run(storage, "none", 1e-4, 0, [0.1])
    result = CliRunner().invoke(app, ["run", "paired", "ours", "theirs"])
    assert result.output.splitlines() == [
        "dsc_strict over 6 cases: ours 0.7833, theirs 0.6833",
        "difference +0.1000, 95 % interval +0.1000 to +0.1000",
        "ours is better in 6 cases and worse in 0; Wilcoxon p 0.031",
        "ours is better",
    ]
    result = CliRunner().invoke(app, ["run", "paired", "ours", "none"])
    assert "run none: has no scores of cases; evaluate it with: rwkvctl evaluate none" in str(result.exception)
