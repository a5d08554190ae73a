"""The journal holds every line once, whatever moment the process died at."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkvctl.base.errors import UserError
from rwkvctl.runs.journal import Journal, read, run_uid


def metrics(path: Path) -> list[tuple[str, int, float]]:
    entries, _ = read(path)
    return [(k, e["step"], v) for e in entries if e["kind"] == "metrics" for k, v in e["values"].items()]


def write(path: Path, steps: range) -> None:
    with Journal(path) as journal:
        for step in steps:
            journal.metrics({"loss": step / 10, "lr": 1e-3}, step)


def test_importing_it_needs_neither_torch_nor_mlflow() -> None:
    code = "import sys, rwkvctl.runs.journal; print([m for m in ('torch', 'mlflow', 'ray') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert out.strip() == "[]"


def test_entries_come_back_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "run" / "journal.jsonl"
    with Journal(path) as journal:
        journal.params({"lr": 1e-3, "name": "tést", "flag": True, "none": None})
        journal.tags({"git": "1f3c"})
        journal.event("start", attempt=1)
        journal.artifact(tmp_path / "run" / "a" / "b.png", "figures")
        journal.artifact(tmp_path / "elsewhere.csv")
        journal.event("end", status="FINISHED")
    entries, offset = read(path)
    assert offset == path.stat().st_size
    assert [e["kind"] for e in entries] == ["journal", "params", "tags", "event", "artifact", "artifact", "event"]
    assert all(isinstance(e.pop("t"), int) for e in entries)
    assert entries[0]["uid"] == run_uid(path)
    assert entries[1]["values"] == {"lr": 1e-3, "name": "tést", "flag": True, "none": "None"}
    assert entries[4] == {"kind": "artifact", "path": "a/b.png", "artifact_path": "figures"}
    assert entries[5]["path"] == str(tmp_path / "elsewhere.csv")
    assert entries[6] == {"kind": "event", "event": "end", "status": "FINISHED"}


def test_values_that_are_not_finite_survive_as_strict_json(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        journal.metrics({"a": math.nan, "b": math.inf, "c": -math.inf, "d": 1 / 3}, 7)

    def refuse(token: str) -> None:
        raise AssertionError(f"{token} is not JSON")

    for line in path.read_text().splitlines():
        json.loads(line, parse_constant=refuse)
    values = {key: value for key, _, value in metrics(path)}
    assert math.isnan(values["a"])
    assert (values["b"], values["c"], values["d"]) == (math.inf, -math.inf, 1 / 3)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_killed_at_any_byte_and_resumed_it_is_complete_and_single(tmp_path_factory, data) -> None:
    path = tmp_path_factory.mktemp("journal") / "journal.jsonl"
    write(path, range(4))
    whole = path.read_bytes()
    first_line = whole.index(b"\n") + 1
    path.write_bytes(whole[: data.draw(st.integers(first_line, len(whole)))])
    write(path, range(1, 6))  # resumed from a checkpoint at step 0, repeats what it had done
    found = metrics(path)
    kept = {(key, step) for key, step, _ in found}
    assert len(found) == len(kept)
    assert {(key, step) for key in ("loss", "lr") for step in range(1, 6)} <= kept
    assert all(value == step / 10 for key, step, value in found if key == "loss")


def test_torn_first_line_starts_a_new_journal(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b'{"t": 1, "kind": "jour')
    write(path, range(2))
    assert run_uid(path)
    assert len(metrics(path)) == 4


def test_long_torn_line_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    write(path, range(2))
    size = path.stat().st_size
    with path.open("ab") as file:
        file.write(b'{"t": 1, "kind": "' + b"x" * 200_000)
    Journal(path).close()
    assert path.stat().st_size == size


def test_first_value_of_a_step_stays(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        journal.metrics({"loss": 1.0}, 0)
        journal.metrics({"loss": 2.0, "dsc": 0.5}, 0)
    assert metrics(path) == [("loss", 0, 1.0), ("dsc", 0, 0.5)]


def test_uid_params_and_tags_last_over_restarts(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        uid = journal.uid
        journal.params({"workers": 2, "lr": math.inf})
        journal.tags({"host": "a"})
    with Journal(path) as journal:
        assert journal.uid == uid
        journal.params({"workers": 4, "lr": math.inf, "seed": 1})
        journal.tags({"host": "b"})
        journal.tags({"host": "b"})
    later = read(path)[0][3:]
    assert [(e["kind"], e.get("values")) for e in later] == [
        ("params", {"seed": 1}),
        ("event", None),
        ("tags", {"host": "b"}),
    ]
    assert (later[1]["event"], later[1]["key"], later[1]["now"]) == ("param_changed", "workers", "4")


def test_reader_takes_whole_lines_only_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    write(path, range(3))
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    entries, offset = read(path)
    assert len(entries) == 3  # uid and two steps
    path.write_bytes(whole)
    rest, end = read(path, offset)
    assert [e["step"] for e in rest] == [2]
    assert read(path, end) == ([], len(whole))
    assert [e["kind"] for e in read(path, limit=1)[0]] == ["journal"]


@pytest.mark.parametrize("damage", [b"not json\n", b'{"kind": "metrics"}\n', b"[1]\n", b"\0\0\0\n"])
def test_damaged_line_is_named(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "journal.jsonl"
    write(path, range(1))
    size = path.stat().st_size
    with path.open("ab") as file:
        file.write(damage)
    with pytest.raises(UserError, match=f"journal.jsonl: the line at byte {size} is damaged"):
        read(path)


def test_other_file_is_no_journal(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text('{"t": 1, "kind": "event", "event": "start"}\n')
    with pytest.raises(UserError, match="not a journal"):
        Journal(path)


def test_disk_that_is_full_leaves_no_half_line(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    write(path, range(1))
    size = path.stat().st_size
    code = f"""
import resource, signal
from rwkvctl.runs.journal import Journal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
journal = Journal({str(path)!r})
resource.setrlimit(resource.RLIMIT_FSIZE, ({size} + 20, {size} + 20))
try:
    journal.event("message", text="more than fits")
except OSError as error:
    print(error)
"""
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert "only 20 of" in out
    assert path.stat().st_size == size


def test_logging_a_step_is_one_cheap_write(tmp_path: Path) -> None:
    import time

    with Journal(tmp_path / "journal.jsonl") as journal:
        start = time.perf_counter()
        for step in range(2000):
            journal.metrics({"train/loss": 0.1, "train/lr": 1e-3, "train/images_per_s": 100.0}, step)
        assert (time.perf_counter() - start) / 2000 < 2e-3
