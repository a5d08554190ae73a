"""`rwkvctl finetune --folds` on the command line: what it shows, and what it refuses."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rwkvctl.base.errors import UserError
from rwkvctl.cli import folds
from rwkvctl.cli.app import app
from rwkvctl.data.convert.prepare import prepare
from rwkvctl.data.convert.resplit import add_folds
from rwkvctl.data.convert.synth import phantom
from rwkvctl.data.store.manifest import Manifest


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    raw = phantom.write_polyps(tmp_path_factory.mktemp("raw") / "polyps", n=12, size=32)
    return prepare("folder", [raw], tmp_path_factory.mktemp("shards") / "polyps", seeds=[41]).root


@pytest.fixture
def polyps(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "polyps"))


def finetune(data: Path, *options: str) -> str:
    done = CliRunner().invoke(app, ["finetune", "--data", str(data), "--variant", "xt", *options])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.stdout


def test_a_dry_run_shows_the_folds_and_writes_nothing(polyps: Path):
    before = (polyps / "manifest.json").read_bytes()
    shown = json.loads(finetune(polyps, "--folds", "3", "--dry-run", "--json"))["plan"]
    assert shown["folds"] == "folds3_s41, to be added to the data set"
    assert [shown[f"fold {n}"].split("(")[0] for n in range(3)] == ["train 6 ", "train 7 ", "train 7 "]
    assert (polyps / "manifest.json").read_bytes() == before
    add_folds(polyps, 3)
    named = json.loads(finetune(polyps, "--folds", "folds3_s41", "--dry-run", "--json"))["plan"]
    assert named == shown | {"folds": "folds3_s41, in the data set"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--folds", "3", "--resume", "cv"], "--folds: the folds of a run are its own; go on with: rwkvctl run"),
        (["--folds", "3", "--set", "data.split=random811_s41"], "data.split random811_s41: --folds chooses the splits"),
        (["--folds", "3", "--nodes", "2"], "--nodes: each fold trains on one node"),
        (["--folds", "3", "--profile", "5"], "--profile: is for one training"),
        (["--folds", "mine"], "--folds mine: polyps has no splits mine_fold0"),
        (["--folds", "30"], "--folds 30: give 2 to 10, the number of groups of samples"),
        (["--concurrency", "2"], "--concurrency: is for --folds"),
        (["--folds", "3", "--set", "train.batch_size=100", "--set", "train.tail=drop"], "train.batch_size 100 is more"),
    ],
)  # fmt: skip
def test_what_folds_cannot_be_trained_with(polyps: Path, options: list[str], said: str):
    with pytest.raises(UserError, match=f"^{said}"):
        finetune(polyps, *options)
    assert "folds3_s41_fold0" not in Manifest.load(polyps).splits


def test_cases_that_are_stored_in_the_other_form_have_their_groups(cardiac: Manifest, tmp_path: Path):
    """Two frames a patient, as slices or as volumes: new folds and those in the data set are shown alike."""
    root = Path(shutil.copytree(cardiac.root, tmp_path / "cardiac"))
    new = folds.lines(cardiac, folds.find(cardiac, "2"))
    add_folds(root, 2)
    there = Manifest.load(root)
    known = folds.lines(there, folds.find(there, "2"))
    assert known == new | {"folds": "folds2_s41, in the data set"}
    patients = {key.split("_f")[0] for part in ("train", "val") for key in cardiac.ids(None, part)}
    counts = [int(re.findall(r"\d+", known["fold 0"])[at]) for at in (1, 3)]
    assert sum(counts) == len(patients)


def pretrain(data: Path, *options: str) -> str:
    done = CliRunner().invoke(app, ["pretrain", "--data", str(data), "--set", "train.batch_size=4", *options])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.stdout


def test_folds_of_classifiers_are_shown_and_refused_alike(classed: Manifest, tmp_path: Path):
    data = Path(shutil.copytree(classed.root, tmp_path / "classed"))
    shown = json.loads(pretrain(data, "--folds", "2", "--dry-run", "--json"))["plan"]
    assert shown["folds"] == "folds2_s41, to be added to the data set"
    assert shown["fold 0"].endswith("none is torn apart")
    for options, said in (
        (["--folds", "2", "--resume", "cv"], "--folds: the folds of a run are its own; go on with: rwkvctl run"),
        (["--folds", "2", "--nodes", "2"], "--nodes: each fold trains on one node"),
        (["--concurrency", "2"], "--concurrency: is for --folds"),
    ):
        with pytest.raises(UserError, match=f"^{said}"):
            pretrain(data, *options)
