"""What a run says of the machine, the libraries and the code that it was started with."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rwkvctl.base import lineage
from rwkvctl.cli.app import remember_command
from rwkvctl.runs import journal, provenance
from rwkvctl.runs.journal import Journal


def started(run_dir: Path) -> list[dict]:
    with Journal(run_dir / "journal.jsonl") as log:
        provenance.record(log, run_dir, "finetune")
    return journal.read(run_dir / "journal.jsonl")[0]


def test_pip_reads_the_environment_as_requirements(tmp_path: Path) -> None:
    started(tmp_path)
    text = (tmp_path / "environment.txt").read_text()
    frozen = subprocess.run(
        [sys.executable, "-m", "pip", "list", "--format=freeze"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    plain = {line.lower().replace("_", "-").replace(".", "-") for line in text.splitlines()[1:]}
    assert plain >= {line.lower().replace("_", "-").replace(".", "-") for line in frozen if line.startswith(("t", "n"))}


def test_a_run_that_goes_on_with_other_libraries_says_so(tmp_path: Path) -> None:
    assert not [entry for entry in started(tmp_path) if entry["kind"] == "event"]
    path = tmp_path / "environment.txt"
    content = path.read_text()
    torch_line = next(line for line in content.splitlines() if line.startswith("torch=="))
    path.write_text(content.replace(torch_line, "torch==1.13.0"))
    [said] = [entry["text"] for entry in started(tmp_path) if entry["kind"] == "event"]
    now = torch_line.removeprefix("torch==")
    assert said == f"warning: libraries changed since the run was last started: torch 1.13.0 -> {now}"
    assert path.read_text() == content
    assert len([entry for entry in started(tmp_path) if entry["kind"] == "event"]) == 1


def test_changed_code_is_kept_with_the_run_and_its_secrets_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    (checkout / "model.py").write_text("rate = 1\n")
    identity = {f"GIT_{who}_{what}": "x" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run(["git", *command], cwd=checkout, check=True, env=os.environ | identity)
    monkeypatch.setattr(lineage, "__file__", str(checkout / "lineage.py"))
    run = tmp_path / "run"
    started(run)
    assert not (run / "code.diff").exists()
    (checkout / "model.py").write_text('rate = 2\nserver = "postgresql://ann:hunter2@db/x"\n')
    entries = started(run)
    diff = (run / "code.diff").read_text()
    assert "-rate = 1\n+rate = 2\n" in diff
    assert "hunter2" not in diff
    assert [entry["path"] for entry in entries if entry["kind"] == "artifact"][-2:] == ["environment.txt", "code.diff"]
    (checkout / "model.py").write_text("rate = 1\n")
    started(run)
    assert not (run / "code.diff").exists()


def test_the_command_line_is_a_tag_without_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(lineage.COMMAND_VARIABLE, "")
    monkeypatch.setattr(sys, "argv", ["/x/rwkvctl", "finetune", "--set", "tracking.uri=http://ann:hunter2@h", "a b"])
    remember_command()
    tags = {
        key: value for entry in started(tmp_path) if entry["kind"] == "tags" for key, value in entry["values"].items()
    }
    assert tags["rwkvctl.command"] == "rwkvctl finetune --set 'tracking.uri=http://ann:***@h' 'a b'"
    assert len(tags["rwkvctl.code"]) == 64
