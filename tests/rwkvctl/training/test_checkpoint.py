"""A checkpoint holds the whole state, bit for bit, is whole or absent, and is not read when it is not what it says."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from rwkvctl.base import files
from rwkvctl.base.errors import JobFailedError, UserError
from rwkvctl.training import checkpoint
from rwkvctl.training.checkpoint import Position, TrainState, load_checkpoint, pointed_at, save_checkpoint


def make_state(seed: int, *, ema: bool = True, lr: float = 1e-3) -> TrainState:
    """A small network with everything that has state: norms with buffers, two parameter groups, an average."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 2))
    decayed, others = [model[0].weight, model[3].weight], [model[0].bias, *model[1].parameters(), model[3].bias]
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": 0.05},
        {"params": others, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.8, 0.95))
    return TrainState(model, optimizer, "f" * 64, {"seed": seed}, copy.deepcopy(model) if ema else None)


def train(state: TrainState, steps: int) -> None:
    """A few steps on data that depend on the step alone."""
    for _ in range(steps):
        torch.manual_seed(1000 + state.position.step)
        loss = state.model(torch.randn(5, 3, 8, 8)).square().mean()
        state.optimizer.zero_grad()
        loss.backward()
        state.optimizer.param_groups[0]["lr"] *= 0.9
        state.optimizer.step()
        if state.ema is not None:
            for average, value in zip(state.ema.parameters(), state.model.parameters(), strict=True):
                average.data.lerp_(value.data, 0.1)
        state.position.step += 1
        state.position.consumed += 5


def bits(state: TrainState) -> dict[str, bytes]:
    return {
        f"{file}/{name}": tensor.numpy().tobytes()
        for file, tensors in state.tensors().items()
        for name, tensor in tensors.items()
    }


@pytest.mark.parametrize("ema", [True, False])
def test_a_resumed_state_continues_bit_for_bit(tmp_path: Path, ema: bool):
    straight = make_state(0, ema=ema)
    train(straight, 3)
    straight.position.best, straight.position.best_epoch, straight.position.epoch = 0.25, 1, 2
    save_checkpoint(tmp_path, straight)
    resumed = make_state(1, ema=ema, lr=7.0)
    assert load_checkpoint(tmp_path, resumed)
    assert resumed.position == Position(step=3, epoch=2, consumed=15, best=0.25, best_epoch=1)
    assert bits(resumed) == bits(straight)
    for ours, theirs in zip(resumed.optimizer.param_groups, straight.optimizer.param_groups, strict=True):
        assert {k: v for k, v in ours.items() if k != "params"} == {k: v for k, v in theirs.items() if k != "params"}
    train(straight, 4)
    train(resumed, 4)
    assert bits(resumed) == bits(straight)


def test_nothing_to_continue_from(tmp_path: Path):
    state = make_state(0)
    before = bits(state)
    assert not load_checkpoint(tmp_path / "absent", state)
    assert bits(state) == before
    assert not (tmp_path / "absent").exists()


def test_latest_and_best_are_kept_and_nothing_else(tmp_path: Path):
    state = make_state(0)
    for step in range(1, 7):
        train(state, 1)
        save_checkpoint(tmp_path, state, best=step in (1, 3))
    (tmp_path / ".step-00000009.123.tmp").mkdir()
    train(state, 1)
    save_checkpoint(tmp_path, state)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "best.json",
        "latest.json",
        "step-00000003",
        "step-00000007",
    ]
    assert pointed_at(tmp_path, "best") == tmp_path / "step-00000003"
    assert pointed_at(tmp_path, "latest") == tmp_path / "step-00000007"


def test_what_a_killed_writer_left_under_the_name_is_replaced(tmp_path: Path):
    """A step's folder that nothing points at may come from anywhere: another world size, other data."""
    stale, state = make_state(1), make_state(0)
    train(stale, 2)
    save_checkpoint(tmp_path, stale)
    (tmp_path / "latest.json").unlink()
    train(state, 2)
    save_checkpoint(tmp_path, state)
    found = make_state(2)
    assert load_checkpoint(tmp_path, found)
    assert bits(found) == bits(state)


# Atomicity ----------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Stands for a SIGKILL: nothing of ours runs after it."""


def moments(monkeypatch: pytest.MonkeyPatch, die_at: int | None) -> list[str]:
    """Count every change to the disk that saving makes; at number `die_at`, die before it happens."""
    seen: list[str] = []

    def watched(what: str, call: Any) -> Any:
        def changed(*args: Any, **kwargs: Any) -> Any:
            if len(seen) == die_at:
                raise Killed(what)
            seen.append(what)
            return call(*args, **kwargs)

        return changed

    for owner, name in (
        (Path, "replace"),
        (Path, "mkdir"),
        (Path, "open"),
        (os, "fsync"),
        (checkpoint.shutil, "rmtree"),
    ):
        monkeypatch.setattr(owner, name, watched(name, getattr(owner, name)))
    return seen


def test_a_writer_killed_at_any_point_leaves_a_loadable_latest(tmp_path: Path):
    with pytest.MonkeyPatch.context() as patch:
        count = count_moments(patch, tmp_path / "count")
    assert count > 20
    before, after = make_state(0), make_state(0)
    train(before, 2)
    train(after, 3)
    for moment in range(count):
        folder = tmp_path / str(moment)
        save_checkpoint(folder, before, best=True)
        with pytest.MonkeyPatch.context() as patch:
            moments(patch, moment)
            with pytest.raises(Killed):
                save_checkpoint(folder, after, best=True)
        found = make_state(9)
        assert load_checkpoint(folder, found), moment
        assert bits(found) in (bits(before), bits(after)), moment
        best = pointed_at(folder, "best")
        assert best is not None
        checkpoint.read_checked(best)
        save_checkpoint(folder, after, best=True)  # the next run of the job tidies up
        assert sorted(p.name for p in folder.iterdir()) == ["best.json", "latest.json", "step-00000003"], moment


def count_moments(patch: pytest.MonkeyPatch, folder: Path) -> int:
    state = make_state(0)
    train(state, 2)
    save_checkpoint(folder, state, best=True)
    train(state, 1)
    seen = moments(patch, None)
    save_checkpoint(folder, state, best=True)
    return len(seen)


WRITER = """
import sys
sys.path.insert(0, {here!r})
from pathlib import Path
from test_checkpoint import make_state, train, load_checkpoint, save_checkpoint
state = make_state(0)
load_checkpoint(Path(sys.argv[1]), state)
while True:
    train(state, 1)
    save_checkpoint(Path(sys.argv[1]), state, best=state.position.step % 3 == 0)
    print(state.position.step, flush=True)
"""


@pytest.mark.slow
def test_a_writer_that_is_really_killed_leaves_a_loadable_latest(tmp_path: Path):
    code = WRITER.format(here=str(Path(__file__).parent))
    steps = 0
    for delay in (0.0, 0.003, 0.011):
        writer = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        for _ in range(3):
            said = int(writer.stdout.readline())
        time.sleep(delay)  # anywhere inside the next save
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        said = max([said, *map(int, writer.stdout.read().split())])
        writer.stdout.close()
        found, expected = make_state(9), make_state(0)
        assert load_checkpoint(tmp_path, found)
        assert found.position.step >= max(said, steps + 3)
        steps = found.position.step
        train(expected, steps)
        assert bits(found) == bits(expected)


# What is refused ----------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    state = make_state(0)
    train(state, 1)
    return save_checkpoint(tmp_path, state)


@pytest.mark.parametrize("name", ["model", "ema", "optimizer"])
def test_a_flipped_byte_is_named(saved: Path, name: str):
    path = saved / f"{name}.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    refused(saved, rf"{name}\.safetensors: its content does not match the hash")


def test_other_data_are_refused(saved: Path):
    state = make_state(0)
    state.fingerprint = "0" * 64
    with pytest.raises(UserError, match=r"was trained on data ffffffffffff, but the data is now 000000000000"):
        load_checkpoint(saved.parent, state)


def refused(saved: Path, said: str) -> None:
    state = make_state(3)
    before = bits(state)
    with pytest.raises(UserError, match=said) as caught:
        load_checkpoint(saved.parent, state)
    assert "\n" not in str(caught.value)
    assert str(saved.parent) in str(caught.value)
    assert bits(state) == before, "nothing is half loaded"


@pytest.mark.parametrize("name", ["model.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json"])
def test_a_missing_file_is_named(saved: Path, name: str):
    (saved / name).unlink()
    refused(saved, f"{name}.* missing|missing.*{name}|{name}: missing")


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"schema": "rwkv-checkpoint/2"}', '{"schema": 1}'])
def test_a_damaged_state_is_named(saved: Path, content: str):
    (saved / "state.json").write_text(content)
    refused(saved, r"state\.json: (damaged|not a checkpoint)")


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"checkpoint": 3}', "null"])
def test_a_damaged_pointer_is_named(saved: Path, content: str):
    (saved.parent / "latest.json").write_text(content)
    refused(saved, r"latest\.json: not a checkpoint pointer")


def test_a_pointer_into_nothing_is_named(saved: Path):
    files.write_json(saved.parent / "latest.json", {"checkpoint": "step-00000099"})
    refused(saved, r"step-00000099: no checkpoint here")


def test_the_spec_and_the_hashes_are_there_to_read(saved: Path):
    content = json.loads((saved / "state.json").read_text())
    assert content["spec"] == {"seed": 0}
    assert content["fingerprint"] == "f" * 64
    assert set(content["sha256"]) == {"model.safetensors", "ema.safetensors", "optimizer.safetensors"}
    assert [group["weight_decay"] for group in content["param_groups"]] == [0.05, 0.0]


@pytest.mark.parametrize("where", ["model", "ema", "optimizer"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_not_written(tmp_path: Path, where: str, value: float):
    state = make_state(0)
    train(state, 2)
    save_checkpoint(tmp_path, state, best=True)
    train(state, 1)
    next(t for t in reversed(state.tensors()[where].values()) if t.is_floating_point() and t.ndim).view(-1)[0] = value
    with pytest.raises(JobFailedError, match=f"step 3: {where} .* is not finite, and no checkpoint is written"):
        save_checkpoint(tmp_path, state, best=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best.json", "latest.json", "step-00000002"]


def test_a_run_is_not_resumed_in_another_order_of_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    state = make_state(0)
    train(state, 2)
    save_checkpoint(tmp_path, state)
    assert load_checkpoint(tmp_path, make_state(1))
    monkeypatch.setattr(checkpoint, "ORDER_VERSION", 2)
    with pytest.raises(UserError, match="in an order of version 1, and this rwkvctl has version 2"):
        load_checkpoint(tmp_path, make_state(1))
