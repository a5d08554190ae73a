"""Writing in the background: what is told when, to whom, and what is held up."""

from __future__ import annotations

import errno
import threading
from pathlib import Path
from typing import Any

import pytest

from rwkvctl.base.errors import JobFailedError
from rwkvctl.training import checkpoint_write
from rwkvctl.training.checkpoint_folder import pointed_at
from rwkvctl.training.checkpoint_write import CheckpointWriter

from .tiny_state import bits, make_state, resume, train


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Nothing is written before this is set."""
    event, write = threading.Event(), checkpoint_write.write_files

    def waiting(*args: Any) -> None:
        assert event.wait(300)
        write(*args)

    monkeypatch.setattr(checkpoint_write, "write_files", waiting)
    return event


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path: Path, held: threading.Event):
    told: list[str] = []
    writer = CheckpointWriter(
        tmp_path, before=lambda: told.append("before"), after=lambda step, **_: told.append(f"after {step}")
    )
    state = make_state(0)
    train(state, 1)
    at_one = bits(state)
    writer.begin(state, best=True)
    train(state, 1)
    assert writer.failure() is None
    assert pointed_at(tmp_path, "latest") is None
    assert told == []
    held.set()
    writer.begin(state)  # which waits for the former
    assert told[:2] == ["before", "after 1"]
    assert writer.close() is None
    assert told == ["before", "after 1", "before", "after 2"]
    assert pointed_at(tmp_path, "best") == tmp_path / "step-00000001"
    found = make_state(3)
    assert resume(tmp_path, found) == []
    assert bits(found) == bits(state)
    (tmp_path / "latest.json").write_text('{"checkpoint": "step-00000001"}')
    resume(tmp_path, found)
    assert bits(found) == at_one


def full(*_: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_disk_that_is_full_is_told_at_the_next_chance_and_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    writer, state = CheckpointWriter(tmp_path), make_state(0)
    train(state, 1)
    monkeypatch.setattr(checkpoint_write, "write_files", full)
    writer.begin(state)
    said = f"step 1: cannot write a checkpoint: {tmp_path}: No space left on device; free some space"
    with pytest.raises(JobFailedError) as caught:
        writer.finish()
    assert str(caught.value) == said
    writer.finish()
    assert writer.close() is None
    assert pointed_at(tmp_path, "latest") is None


def test_whoever_only_closes_is_told_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    writer, state = CheckpointWriter(tmp_path), make_state(0)
    train(state, 1)
    monkeypatch.setattr(checkpoint_write, "write_files", full)
    writer.begin(state)
    assert isinstance(writer.close(), JobFailedError)


def test_weights_that_are_not_finite_are_found_in_the_background(tmp_path: Path):
    writer, state = CheckpointWriter(tmp_path), make_state(0)
    train(state, 1)
    writer.begin(state)
    train(state, 1)
    next(state.model.parameters()).data[0] = float("nan")
    writer.begin(state, best=True)
    with pytest.raises(JobFailedError, match=r"step 2: model 0\.weight is not finite, and no checkpoint is written"):
        writer.finish()
    assert pointed_at(tmp_path, "latest") == tmp_path / "step-00000001"
    assert pointed_at(tmp_path, "best") is None
    writer.close()


def test_nothing_points_at_a_checkpoint_that_is_refused_at_the_last_moment(tmp_path: Path):
    """As when another process has taken the run."""

    def refuse() -> None:
        raise RuntimeError("lost")

    writer, state = CheckpointWriter(tmp_path, before=refuse), make_state(0)
    writer.begin(state)
    with pytest.raises(RuntimeError, match="lost"):
        writer.finish()
    assert not list(tmp_path.glob("step-*"))
    assert not list(tmp_path.glob("*.json"))
    writer.close()
