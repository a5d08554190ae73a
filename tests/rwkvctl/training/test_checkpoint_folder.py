"""Damage of every kind: the newest sound checkpoint is taken, and what was passed over is named."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from rwkvctl.base.errors import UserError
from rwkvctl.base.files import write_json
from rwkvctl.training.checkpoint import Position
from rwkvctl.training.checkpoint_folder import checkpoints, find_checkpoint, pointed_at, read_checked, unneeded
from rwkvctl.training.checkpoint_read import keep_best, load_checkpoint
from rwkvctl.training.checkpoint_write import save_checkpoint

from .tiny_state import bits, make_state, resume, train

Damage = Callable[[Path], object]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Checkpoints of the steps 2 (the best), 3 and 4."""
    state = make_state(0)
    train(state, 1)
    for epoch in (1, 2, 3):
        train(state, 1)
        state.position.epoch, state.position.consumed = epoch, 0
        if epoch == 1:
            state.position.best, state.position.best_epoch = 0.5, 1
        save_checkpoint(tmp_path, state, best=epoch == 1)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000004", "step-00000003", "step-00000002"]
    return tmp_path


def truncate(name: str) -> Damage:
    return lambda newest: os.truncate(newest / name, (newest / name).stat().st_size // 2)


def flip(name: str, at: int = -5) -> Damage:
    def damage(newest: Path) -> None:
        content = bytearray((newest / name).read_bytes())
        content[at] ^= 1
        (newest / name).write_bytes(content)

    return damage


def remove(name: str) -> Damage:
    return lambda newest: (newest / name).unlink()


def rewrite(name: str, text: str) -> Damage:
    return lambda newest: (newest / name).write_text(text)


def half_renamed(newest: Path) -> None:
    newest.rename(newest.with_name(f".{newest.name}.123.tmp"))


def alter(old: str, new: str) -> Damage:
    """One digit of `state.json`, which is JSON as before."""

    def damage(newest: Path) -> None:
        text = (newest / "state.json").read_text()
        assert text.count(old) == 1
        (newest / "state.json").write_text(text.replace(old, new))

    return damage


def a_file(newest: Path) -> None:
    shutil.rmtree(newest)
    newest.touch()


def empty_folder(newest: Path) -> None:
    shutil.rmtree(newest)
    newest.mkdir()


MODEL, STATE = "model.safetensors", "state.json"
DAMAGES = {
    "truncated": (truncate(MODEL), f"step-00000004/{MODEL} does not match its hash in state.json"),
    "emptied": (rewrite(MODEL, ""), f"step-00000004/{MODEL} does not match its hash in state.json"),
    "bit flipped": (flip(MODEL), f"step-00000004/{MODEL} does not match its hash in state.json"),
    "bit of a header flipped": (flip(MODEL, 12), f"step-00000004/{MODEL} does not match its hash in state.json"),
    "bit of the average": (flip("ema.safetensors"), "step-00000004/ema.safetensors does not match its hash"),
    "bit of the optimiser": (flip("optimizer.safetensors"), "step-00000004/optimizer.safetensors does not match its"),
    "file missing": (remove("optimizer.safetensors"), "step-00000004/optimizer.safetensors is missing"),
    "state missing": (remove(STATE), "step-00000004/state.json is missing"),
    "state truncated": (truncate(STATE), "step-00000004/state.json is not JSON"),
    "state emptied": (rewrite(STATE, ""), "step-00000004/state.json is not JSON"),
    "state of zeros": (rewrite(STATE, "\0" * 512), "step-00000004/state.json is not JSON"),
    "state is something else": (rewrite(STATE, "[]"), "step-00000004/state.json is not the state of a checkpoint"),
    "state without fields": (rewrite(STATE, '{"schema": "rwkv-checkpoint/1"}'), "state.json is not the state of a"),
    "step altered": (alter('"step": 4', '"step": 5'), "state.json does not match its own checksum"),
    "format altered": (
        alter("checkpoint/1", "checkpoint/3"),
        "state.json does not match its own checksum",
    ),
    "half renamed": (half_renamed, "step-00000004 is missing"),
    "missing": (shutil.rmtree, "step-00000004 is missing"),
    "a file": (a_file, "step-00000004 is missing"),
    "nothing in it": (empty_folder, "step-00000004/state.json is missing"),
}
POINTERS = {
    "emptied": ("", "latest.json does not name a checkpoint"),
    "truncated": ("{", "latest.json does not name a checkpoint"),
    "a list": ("[]", "latest.json does not name a checkpoint"),
    "another object": ("{}", "latest.json does not name a checkpoint"),
    "a number": ('{"checkpoint": 3}', "latest.json does not name a checkpoint"),
    "null": ("null", "latest.json does not name a checkpoint"),
    "not text": ("\x00\x80", "latest.json does not name a checkpoint"),
    "elsewhere": ('{"checkpoint": "../step-00000004"}', "latest.json does not name a checkpoint"),
    "into nothing": ('{"checkpoint": "step-00000099"}', "step-00000099 is missing"),
    "removed": (None, "latest.json is missing"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_newest_checkpoint_is_passed_over_and_named(folder: Path, kind: str):
    damage, said = DAMAGES[kind]
    damage(folder / "step-00000004")
    found, expected = make_state(9), make_state(0)
    [line] = resume(folder, found) or []
    assert line.startswith(said) or said in line
    train(expected, 3)
    assert bits(found) == bits(expected)
    train(found, 2)
    found.position.epoch = 4
    save_checkpoint(folder, found)
    assert [path.name for path in checkpoints(folder)] == ["step-00000005", "step-00000003", "step-00000002"]
    assert resume(folder, make_state(9)) == []


@pytest.mark.parametrize("kind", POINTERS)
def test_a_damaged_pointer_is_named_and_the_newest_checkpoint_is_taken(folder: Path, kind: str):
    content, said = POINTERS[kind]
    path = folder / "latest.json"
    path.unlink() if content is None else path.write_bytes(content.encode("latin-1"))
    found = make_state(9)
    assert resume(folder, found) == [said]
    assert found.position.step == 4
    save_checkpoint(folder, found)
    assert resume(folder, make_state(9)) == []


def test_a_damaged_checkpoint_is_replaced_when_training_comes_to_its_step_again(folder: Path):
    """Though `latest` points at it all the time."""
    before = (folder / "step-00000004" / MODEL).read_bytes()
    flip(MODEL)(folder / "step-00000004")
    found = make_state(9)
    load_checkpoint(folder / "step-00000003", found)
    train(found, 1)
    save_checkpoint(folder, found, best=True)
    read_checked(folder / "step-00000004")
    assert (folder / "step-00000004" / MODEL).read_bytes() == before


def test_several_damaged_ones_are_all_named(folder: Path):
    remove(STATE)(folder / "step-00000004")
    flip(MODEL)(folder / "step-00000003")
    found = make_state(9)
    damage = resume(folder, found)
    assert damage == [
        "step-00000004/state.json is missing",
        f"step-00000003/{MODEL} does not match its hash in state.json",
    ]
    assert found.position.step == 2


@pytest.mark.parametrize("pointer", [True, False])
def test_without_a_sound_checkpoint_nothing_begins_anew(folder: Path, pointer: bool):
    for path in checkpoints(folder):
        flip(MODEL)(path)
    if not pointer:
        (folder / "latest.json").unlink()
    with pytest.raises(UserError, match=r"is sound .*restore this folder from a backup, or delete") as caught:
        resume(folder, make_state(9))
    assert len(str(caught.value)) - len(str(folder)) < 350


def test_a_pointer_alone_is_no_new_run(folder: Path):
    for path in checkpoints(folder):
        shutil.rmtree(path)
    with pytest.raises(UserError, match=r"no checkpoint is sound .step-00000004 is missing"):
        resume(folder, make_state(9))
    (folder / "latest.json").unlink()
    with pytest.raises(UserError, match=r"no checkpoint is sound .latest\.json is missing"):
        resume(folder, make_state(9))
    (folder / "best.json").unlink()
    assert resume(folder, make_state(9)) is None


# The best ------------------------------------------------------------------------------------------------------------


def test_instead_of_a_damaged_best_the_newest_sound_one_is_found(folder: Path):
    flip(MODEL)(folder / "step-00000002")
    remove(MODEL)(folder / "step-00000004")
    found = find_checkpoint(folder, "best")
    assert found is not None
    assert found.path == folder / "step-00000003"
    assert len(found.damage) == 2


def test_a_best_pointer_that_is_lost_is_found_again(folder: Path):
    for content in ("", '{"checkpoint": "step-00000099"}', None):
        path = folder / "best.json"
        path.unlink() if content is None else path.write_text(content)
        position = Position(step=4, epoch=3, best=0.5, best_epoch=1)
        assert keep_best(folder, position) is None
        assert pointed_at(folder, "best") == folder / "step-00000002"
        assert position.best == 0.5


def test_a_best_checkpoint_that_is_lost_is_told_and_the_next_epochs_compete(folder: Path):
    flip(MODEL)(folder / "step-00000002")
    position = Position(step=4, epoch=3, best=0.5, best_epoch=1)
    assert keep_best(folder, position) == f"step-00000002/{MODEL} does not match its hash in state.json"
    assert (position.best, position.best_epoch) == (None, None)
    assert keep_best(folder, Position()) is None


# What can go ---------------------------------------------------------------------------------------------------------


def test_what_can_go(folder: Path):
    assert unneeded(folder) == []
    half_written = folder / ".step-00000005.77.tmp"
    half_written.mkdir()
    (folder / ".latest.json.abc.tmp").touch()
    shutil.copytree(folder / "step-00000002", folder / "step-00000001")
    spare = {half_written, folder / ".latest.json.abc.tmp", folder / "step-00000001"}
    assert set(unneeded(folder)) == spare
    flip(MODEL)(folder / "step-00000003")
    assert set(unneeded(folder)) == spare | {folder / "step-00000003"}


def test_without_a_sound_checkpoint_none_can_go(folder: Path):
    for path in checkpoints(folder):
        flip(MODEL)(path)
    write_json(folder / "latest.json", {"checkpoint": "step-00000099"})
    assert unneeded(folder) == []
    assert json.loads((folder / "best.json").read_text())["checkpoint"] == "step-00000002"
