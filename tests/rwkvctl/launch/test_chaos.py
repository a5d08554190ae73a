"""Faults are drawn from a seed and done to what they name; what a training has lost or doubled is found and named."""

from __future__ import annotations

import json
import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from typer.testing import CliRunner

from rwkvctl.base.errors import UserError
from rwkvctl.cli import chaos as cli
from rwkvctl.cli.app import app
from rwkvctl.launch.chaos import plan, report, strikes, verdict
from rwkvctl.launch.chaos.campaign import Blow, Campaign, Outcome
from rwkvctl.launch.chaos.processes import role_of
from rwkvctl.launch.chaos.verdict import Verdict
from rwkvctl.runs import samples_seen
from rwkvctl.runs.journal import Journal
from rwkvctl.runs.samples_seen import SamplesSeen, lives
from rwkvctl.runs.sync import Syncer
from rwkvctl.training.checkpoint import Position, TrainState
from rwkvctl.training.checkpoint_folder import damage_of, point, pointed_at
from rwkvctl.training.checkpoint_write import save_checkpoint

# The plan -----------------------------------------------------------------------------------------------------------


def test_a_seed_draws_the_same_faults_again():
    drawn = plan.draw(7, 200)
    assert drawn == plan.draw(7, 200) != plan.draw(8, 200)
    assert drawn[:20] == plan.draw(7, 20)
    assert {fault.kind for fault in drawn} == set(plan.KINDS)
    assert {fault.kind for fault in plan.draw(7, 50, ["disk full", "run stopped"])} == {"disk full", "run stopped"}


def test_an_unknown_kind_of_fault_is_refused():
    with pytest.raises(UserError, match=r"--kind disk ful: is not a kind of fault; did you mean disk full\?"):
        plan.draw(0, 1, ["disk ful"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--storage", "/nowhere/runs"], "--storage /nowhere/runs: cannot be written to (No such file or directory)"),
        (["--storage", "s3://bucket/runs"], "give a folder; runs in an object store are not tried by this command"),
        (["--kind", "coffee"], "--kind coffee: is not a kind of fault; choose from worker killed, "),
    ],
)
def test_wrong_input_leaves_nothing_behind(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(cli, "SHORT", 1000)
    result = CliRunner().invoke(app, ["chaos", *words])
    assert isinstance(result.exception, UserError)
    assert said in str(result.exception)
    assert list(tmp_path.iterdir()) == []


class Ended:
    """A training whose job has ended with a code, and whose workers have taken a step after all that was done to it."""

    def __init__(self, code: int):
        self.ended, self.starts = code, 0

    def code(self) -> int | None:
        return None if self.starts else self.ended

    def start(self) -> None:
        self.starts += 1

    def first_step_since(self, moment: float) -> float:
        return moment + 1.0

    def last_words(self) -> str:
        return ""


@pytest.mark.parametrize(("kind", "code", "goes_on"), [("run stopped", 3, True), ("loader killed", 3, False)])
def test_a_job_that_ends_later_than_its_workers_took_a_step_ends_for_what_was_done(kind: str, code: int, goes_on: bool):
    training: Any = Ended(code)
    campaign = Campaign(training, Outcome(steps=9), say=lambda text: None)
    blow = Blow(kind, 3, 100.0, "")
    campaign.open, campaign.since_start = [blow], [blow]
    if goes_on:
        assert campaign.go_on()
        assert (blow.seconds, training.starts, campaign.since_start) == (1.0, 1, [])
        return
    with pytest.raises(strikes.GivenUp, match="ended with code 3 after nothing that was done to it"):
        campaign.go_on()


# Who is who ---------------------------------------------------------------------------------------------------------

CLI, DRIVER = "python -P -m rwkvctl.cli.app run resume /runs/a", "python -P -m rwkv_jobs.finetune /runs/a"
NURSERY = "python -P -m rwkvctl.launch.nursery /tmp/x/nursery rwkv_jobs.finetune"
TRACKER = "python -c from multiprocessing.resource_tracker import main; main(3)"


@pytest.mark.parametrize(
    ("role", "line"),
    [
        (None, [CLI]),
        ("drivers", [DRIVER, CLI]),
        ("nurseries", [NURSERY, DRIVER, CLI]),
        ("workers", [NURSERY, NURSERY, DRIVER, CLI]),
        ("nurseries", [DRIVER, DRIVER, CLI]),  # a fork of the driver
        ("workers", [DRIVER, DRIVER, DRIVER, CLI]),
        (None, [DRIVER, DRIVER, DRIVER, DRIVER, CLI]),  # its fork server
        ("loaders", [DRIVER, DRIVER, DRIVER, DRIVER, DRIVER, CLI]),
        ("loaders", [NURSERY, NURSERY, NURSERY, NURSERY, DRIVER, CLI]),
        (None, [TRACKER, DRIVER, DRIVER, DRIVER, CLI]),
    ],
)
def test_processes_are_told_apart_by_their_ancestors(role: str | None, line: list[str]):
    assert role_of(line[0], line[1:]) == role


# Samples ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Writes a life of rank 0 as a training does: `record(folder, first, last)`, with `ids` for those that differ."""

    def write(name: str, first: int, last: int, **ids: list[str]) -> Path:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        monkeypatch.setenv(samples_seen.VARIABLE, str(folder))
        seen = SamplesSeen(0)
        for step in range(first, last + 1):
            seen.note(step, ids.get(f"step{step}", [f"a{step}", f"b{step}"]))
        return folder

    return write


def compared(calm: Path, struck: Path) -> Verdict:
    found = Verdict()
    verdict.compare_samples(lives(calm), lives(struck), found)
    return found


def test_steps_that_were_taken_again_are_neither_lost_nor_doubled(record: Any):
    calm = record("calm", 1, 9)
    record("struck", 1, 5)
    record("struck", 4, 7)
    record("struck", 7, 6)  # killed before its first step
    with next(record("struck", 4, 5).glob("*")).open("ab") as file:
        file.write(b'{"t": 1.0, "st')
    found = compared(calm, record("struck", 6, 9))
    assert found.differences == []
    assert (found.steps, found.samples, found.repeated) == (9, 18, 15 - 9)


def test_lost_and_other_samples_are_named(record: Any):
    calm = record("calm", 1, 9)
    record("lost", 1, 3)
    assert compared(calm, record("lost", 6, 9)).differences == ["samples of worker 0: steps 4 to 5 were lost"]
    assert compared(calm, record("short", 1, 8)).differences == ["samples of worker 0: 8 steps instead of 9"]
    record("other", 1, 5, step4=["a4", "a5"])  # also where the step was taken again, and rightly then
    assert compared(calm, record("other", 4, 9)).differences == [
        "samples of worker 0: step 4 had a4, a5 instead of a4, b4"
    ]
    assert compared(calm, record("long", 1, 10)).differences == [
        "samples of worker 0: 10 steps instead of 9",
        "samples of worker 0: step 10 had a10, b10 instead of none",
    ]


def test_nothing_is_recorded_where_nobody_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(samples_seen.VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    SamplesSeen(0).note(1, ["a"])
    assert list(tmp_path.iterdir()) == []


# Metrics ------------------------------------------------------------------------------------------------------------


def test_metrics_that_are_lost_doubled_or_others_are_named():
    right = [("train/loss", step, step / 10) for step in (1, 2, 3)] + [("train/images_per_second", 1, 90.0)]

    def differences(found: verdict.Metrics) -> list[str]:
        seen = Verdict()
        verdict.compare_metrics(right, found, seen)
        return seen.differences

    assert differences([*right[:3], ("train/images_per_second", 1, 70.0)]) == []
    assert differences([*right, right[1]]) == ["journal: train/loss of step 2 2 times (1 in all)"]
    assert differences(right[1:]) == ["journal: train/loss of step 1 is missing (1 in all)"]
    assert differences([*right, ("train/loss", 4, 0.4)]) == [
        "journal: train/loss of step 4 should not be there (1 in all)"
    ]
    assert differences([("train/loss", 1, 0.1000001), *right[1:]]) == [
        "journal: train/loss of step 1 is 0.1000001 instead of 0.1"
    ]


def test_mlflow_has_what_the_journal_has(migrated_database: Path, tmp_path: Path):
    from mlflow import MlflowClient

    uri = f"sqlite:///{shutil.copy(migrated_database, tmp_path / 'mlflow.db')}"
    run_dir = tmp_path / "disturbed"
    with Journal(run_dir / "journal.jsonl") as journal:
        journal.event("start", run="disturbed", job="finetune")
        journal.metrics({"train/loss": 0.5}, 1)
        journal.metrics({"train/loss": 0.25}, 2)
    syncer = Syncer(run_dir, uri, "chaos")
    syncer.push()

    def differences() -> list[str]:
        found = Verdict()
        verdict.compare_tracked(uri, run_dir, found)
        return found.differences

    assert differences() == ["MLflow: the run is RUNNING"]
    with Journal(run_dir / "journal.jsonl") as journal:
        journal.event("end", status="FINISHED")
    syncer.push()
    assert differences() == []
    MlflowClient(uri).log_metric(syncer.run_id, "train/loss", 0.25, step=2, timestamp=7)
    assert differences() == ["MLflow: train/loss of step 2 2 times (1 in all)"]


# Checkpoints and weights --------------------------------------------------------------------------------------------


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """Two checkpoints and a model."""
    model = nn.Linear(3, 2)
    state = TrainState(model, torch.optim.AdamW(model.parameters()), "f" * 64, {"job": "finetune"})
    for step in (3, 6):
        state.position = Position(step=step, consumed=4 * step)
        save_checkpoint(tmp_path / "run" / "checkpoints", state)
    (tmp_path / "run" / "model").mkdir()
    save_file(model.state_dict(), tmp_path / "run" / "model" / "weights.safetensors")
    return tmp_path / "run"


@pytest.mark.parametrize("kind", ["checkpoint truncated", "checkpoint bit flipped"])
@pytest.mark.parametrize("seed", range(5))
def test_damage_hits_the_newest_checkpoint(run_dir: Path, kind: str, seed: int):
    said = strikes.DAMAGE[kind](run_dir, random.Random(seed))
    assert said.startswith("step-00000006/")
    assert damage_of(run_dir / "checkpoints" / "step-00000006") is not None
    assert [path.name for path in strikes.sound_checkpoints(run_dir)] == ["step-00000003"]


def test_damage_to_the_pointer_and_to_the_journal(run_dir: Path):
    with Journal(run_dir / "journal.jsonl") as journal:
        journal.metrics({"train/loss": 0.5}, 1)
    whole = (run_dir / "journal.jsonl").read_bytes()
    for seed in range(5):
        strikes.tear_journal(run_dir, random.Random(seed))
        assert not (run_dir / "journal.jsonl").read_bytes().endswith(b"\n")
        with Journal(run_dir / "journal.jsonl"):
            pass
        assert (run_dir / "journal.jsonl").read_bytes() == whole
    strikes.garble_pointer(run_dir, random.Random(0))
    content = (run_dir / "checkpoints" / "latest.json").read_bytes()
    assert content != json.dumps({"checkpoint": "step-00000006"}).encode()


def test_weights_are_compared_bit_by_bit(run_dir: Path, tmp_path: Path):
    other = Path(shutil.copytree(run_dir, tmp_path / "other"))

    def differences() -> list[str]:
        found = Verdict()
        verdict.compare_weights(run_dir, other, found)
        return found.differences

    assert differences() == []
    weights = load_file(other / "model" / "weights.safetensors")
    weights["bias"].view(torch.int32)[0] ^= 1
    save_file(weights, other / "model" / "weights.safetensors")
    assert differences() == ["model/weights.safetensors: 1 of 2 tensors differ, first bias"]
    latest = pointed_at(run_dir / "checkpoints", "latest")
    assert latest is not None
    point(other / "checkpoints", "latest", latest.with_name("step-00000003"))
    assert len(differences()) == 1, "the same weights, whatever the checkpoint is called"


# What is told --------------------------------------------------------------------------------------------------------


def test_the_last_line_tells_what_it_comes_to():
    outcome = Outcome(
        24,
        [Blow("worker killed", 3, 0.0, "", 5.25), Blow("worker killed", 9, 0.0, "", 7.0)],
        planned=2,
        starts=1,
        seconds=60.0,
    )
    outcome.verdict = Verdict(24, 5, 96, 80, 300)
    assert outcome.holds
    header, row, _, last = report.table(outcome)
    assert header.split() == ["fault", "count", "next", "step", "after:", "median", "max"]
    assert row.split() == ["worker", "killed", "2", "6.1", "s", "7.0", "s"]
    assert last.startswith("OK: 2 faults, 1 starts, 60 s; 24 steps with 96 samples")
    outcome.verdict.differences.append("samples of worker 0: steps 4 to 5 were lost")
    assert not outcome.holds
    assert report.table(outcome)[-2:] == [
        "problem: samples of worker 0: steps 4 to 5 were lost",
        "FAILED: the training is not the same as without faults: 2 faults, 1 starts, 60 s",
    ]
    assert report.fields(outcome, 3)["problems"] == ["samples of worker 0: steps 4 to 5 were lost"]
    outcome.planned = 3
    assert "2 faults of 3 (the training ended before the others)" in report.table(outcome)[-1]
