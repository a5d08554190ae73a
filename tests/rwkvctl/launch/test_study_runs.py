"""Which trainings a study has, and what of them is still to be done."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from rwkvctl.base.errors import UserError
from rwkvctl.config.specs.study import read_study
from rwkvctl.launch import study_runs
from rwkvctl.launch.study_runs import Choice, Runner, cells, under

STUDY: dict[str, Any] = {
    "title": "Table I",
    "datasets": ["clinicdb"],
    "num_classes": 1,
    "image_size": 32,
    "rows": [
        {"label": "one (1/2)", "set": {"model.name": "rwkv_unet_xt", "model.ccm_hidden_rate": 1}},
        {"label": "two", "set": {"model.name": "rwkv_unet_xt", "model.ccm_hidden_rate": 2}},
        {"label": "cited", "paper": {"dsc": {"clinicdb": 90}}},
    ],
}


@pytest.fixture
def study(tmp_path: Path) -> Any:
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(STUDY))
    return read_study(str(tmp_path / "mine.yaml"))


def test_every_row_has_a_run_for_each_seed_and_budget(study: Any):
    found = cells("mine", study, Choice(seeds=2, data={"clinicdb": "shards"}))
    assert [each.label for each in found] == [
        f"{row}, clinicdb, seed {seed}" for row in ("one (1/2)", "two") for seed in (41, 42)
    ]
    assert found[0].name.startswith("mine-one-1-2-clinicdb-s41-")
    assert found[0].words[:6] == ("finetune", "clinicdb", "--name", found[0].name, "--data", "shards")
    assert "model.ccm_hidden_rate=1" in found[0].words
    names = {each.name for each in found}
    elsewhere = cells("mine", study, under(Choice(seeds=2), "abc"))
    assert {each.name for each in elsewhere} == names, "where a run goes makes no other of it"
    small = cells("mine", study, Choice(seeds=2, assignments=("train.epochs=1",)))
    assert not names & {each.name for each in small}, "another budget is another run"
    assert [each.label for each in cells("mine", study, Choice(rows=("two",)))] == ["two, clinicdb, seed 41"]


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        (Choice(rows=("tow",)), "--rows tow: mine has no such row to train; did you mean two"),
        (Choice(rows=("cited",)), "--rows cited: mine has no such row to train"),
        (Choice(data={"acdc": "x"}), r"--data acdc=...: mine is about clinicdb"),
        (Choice(assignments=("epochs",)), "epochs"),
    ],
)
def test_wrong_choices(study: Any, choice: Choice, said: str):
    with pytest.raises(UserError, match=said):
        cells("mine", study, choice)


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What would be run; each ends as its name says."""
    typed: list[str] = []
    popen = study_runs.subprocess.Popen

    def instead(command: list[str], **options: Any) -> Any:
        words = command[4:]
        typed.append(" ".join(words[:2] if words[0] == "run" else words[:1]))
        code = "print('no memory'); raise SystemExit(1)" if "bad" in " ".join(words) else "pass"
        return popen([sys.executable, "-c", code], **options)

    monkeypatch.setattr(study_runs.subprocess, "Popen", instead)
    return typed


def test_only_what_is_not_done_is_run(commands: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    said: list[str] = []
    states = {
        "new": None, "new-test": None, "done": "done", "done-test": "done", "half": "interrupted", "half-test": None,
        "torn": "done", "torn-test": "failed", "busy": "running", "bad": None, "bad-test": None,
    }  # fmt: skip
    monkeypatch.setattr(Runner, "state", lambda self, name: states[name])
    runner = Runner(str(tmp_path), tmp_path / "logs", said.append)
    runner.run([study_runs.Cell(n, n, ("finetune", n)) for n in ("new", "done", "half", "torn", "busy", "bad")], 1)
    assert commands == [
        "finetune", "evaluate", "run resume", "evaluate", "run rm", "evaluate", "finetune",
    ]  # fmt: skip
    assert runner.elsewhere == ["busy"]
    assert runner.failed == ["bad"]
    assert any(line.startswith("bad: exit code 1 (no memory)") for line in said)
