"""A checkpoint holds the whole state, bit for bit, and is whole or absent."""

from __future__ import annotations

import hashlib
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
from safetensors.torch import load_file, save

from rwkvctl.base.errors import JobFailedError, UserError
from rwkvctl.training import checkpoint_read, checkpoint_write
from rwkvctl.training.checkpoint import Copier, Position
from rwkvctl.training.checkpoint_folder import checksum, pointed_at, read_checked
from rwkvctl.training.checkpoint_write import DTYPES, save_checkpoint, write_tensors

from .tiny_state import bits, make_state, resume, train


@pytest.mark.parametrize("ema", [True, False])
def test_a_resumed_state_continues_bit_for_bit(tmp_path: Path, ema: bool):
    straight = make_state(0, ema=ema)
    train(straight, 3)
    straight.position.best, straight.position.best_epoch, straight.position.epoch = 0.25, 1, 2
    save_checkpoint(tmp_path, straight)
    resumed = make_state(1, ema=ema, lr=7.0)
    assert resume(tmp_path, resumed) == []
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
    assert resume(tmp_path / "absent", state) is None
    assert bits(state) == before
    assert not (tmp_path / "absent").exists()


def test_the_two_latest_and_the_best_are_kept_and_nothing_else(tmp_path: Path):
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
        "step-00000006",
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
    assert resume(tmp_path, found) == []
    assert bits(found) == bits(state)


def test_the_spec_and_the_hashes_are_there_to_read(tmp_path: Path):
    state = make_state(0)
    train(state, 1)
    content = json.loads((save_checkpoint(tmp_path, state) / "state.json").read_text())
    assert content["spec"] == {"seed": 0}
    assert content["fingerprint"] == "f" * 64
    assert set(content["sha256"]) == {"model.safetensors", "ema.safetensors", "optimizer.safetensors"}
    assert [group["weight_decay"] for group in content["param_groups"]] == [0.05, 0.0]


def test_a_checkpoint_of_version_0_1_is_read(tmp_path: Path):
    """It was written with safetensors' own writer, and `state.json` had neither a time nor a checksum."""
    state = make_state(0)
    train(state, 2)
    made = save_checkpoint(tmp_path, state)
    content = json.loads((made / "state.json").read_text())
    for name, tensors in state.tensors().items():
        (made / f"{name}.safetensors").write_bytes(save({key: t.contiguous() for key, t in tensors.items()}))
    old = {key: value for key, value in content.items() if key not in ("written", "checksum")}
    (made / "state.json").write_text(json.dumps(old, indent=2, sort_keys=True))
    found = make_state(1)
    assert resume(tmp_path, found) == []
    assert bits(found) == bits(state)


# Files ---------------------------------------------------------------------------------------------------------------


def test_tensors_are_written_as_safetensors_writes_them(tmp_path: Path):
    torch.manual_seed(0)
    tensors = {f"x.{dtype}": (torch.randn(3, 5) * 50).to(dtype) for dtype in DTYPES}
    tensors |= {"scalar": torch.tensor(2.5), "empty": torch.zeros(0, 3), 'ä"\\': torch.ones(1)}
    laid_out = torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    written = write_tensors(tmp_path / "file", tensors | {"laid out": laid_out})
    expected = save(tensors | {"laid out": laid_out.contiguous()})
    assert (tmp_path / "file").read_bytes() == expected
    assert written == hashlib.sha256(expected).hexdigest()
    assert torch.equal(load_file(tmp_path / "file")["laid out"], laid_out)


def test_a_copy_stays_as_it_is_while_training_goes_on(tmp_path: Path):
    state, copier = make_state(0), Copier()
    train(state, 2)
    at_two, copy = bits(state), copier.copy(state)
    train(state, 1)
    found = {f"{f}/{n}": t.numpy().tobytes() for f, tensors in copy.files.items() for n, t in tensors.items()}
    assert found == at_two
    assert copy.position["step"] == 2
    assert copy.param_groups[0]["lr"] != state.optimizer.param_groups[0]["lr"]
    places = {t.data_ptr() for tensors in copy.files.values() for t in tensors.values()}
    again = copier.copy(state)
    assert {t.data_ptr() for tensors in again.files.values() for t in tensors.values()} == places, "one copy is held"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_copy_from_a_gpu_is_of_the_step_that_it_was_asked_for():
    """Though nobody waits for it before the weights change."""
    state, copier = make_state(0), Copier()
    state.model.cuda()
    for _ in range(3):
        before = {name: tensor.clone() for name, tensor in state.model.state_dict().items()}
        copy = copier.copy(state)
        for parameter in state.model.parameters():
            parameter.data.add_(1.0)
        copy.wait()
        for name, tensor in copy.files["model"].items():
            assert tensor.device.type == "cpu"
            assert torch.equal(tensor, before[name].cpu()), name


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
        (checkpoint_write.shutil, "rmtree"),
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
        assert resume(folder, found) == [], moment
        assert bits(found) in (bits(before), bits(after)), moment
        best = pointed_at(folder, "best")
        assert best is not None
        read_checked(best)
        save_checkpoint(folder, after, best=True)  # the next run of the job tidies up
        left = sorted(p.name for p in folder.iterdir())
        assert left == ["best.json", "latest.json", "step-00000002", "step-00000003"], moment


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
from tiny_state import make_state, resume, train
from rwkvctl.training.checkpoint_write import CheckpointWriter
state = make_state(0)
resume(Path(sys.argv[1]), state)
writer = CheckpointWriter(Path(sys.argv[1]), after=lambda step, **_: print(step, flush=True))
while True:
    train(state, 1)
    writer.begin(state, best=state.position.step % 3 == 0)
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
        assert resume(tmp_path, found) == []
        assert found.position.step >= max(said, steps + 3)
        steps = found.position.step
        train(expected, steps)
        assert bits(found) == bits(expected)


# What is refused ----------------------------------------------------------------------------------------------------


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


def refused(saved: Path, state: Any, said: str) -> None:
    """All of it: one line, and nothing is half loaded. An older checkpoint is no way out."""
    before = bits(state)
    with pytest.raises(UserError, match=said) as caught:
        resume(saved.parent, state)
    assert "\n" not in str(caught.value)
    assert str(saved) in str(caught.value)
    assert len(str(caught.value)) < 300 + len(str(saved))
    assert bits(state) == before


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """The second of two."""
    state = make_state(0)
    for _ in range(2):
        train(state, 1)
        path = save_checkpoint(tmp_path, state)
    return path


def test_other_data_are_refused(saved: Path):
    state = make_state(3)
    state.fingerprint = "0" * 64
    refused(saved, state, r"was trained on data ffffffffffff, but the data is now 000000000000")


def test_another_order_of_samples_is_refused(saved: Path, monkeypatch: pytest.MonkeyPatch):
    now = checkpoint_read.ORDER_VERSION
    monkeypatch.setattr(checkpoint_read, "ORDER_VERSION", now + 1)
    refused(saved, make_state(3), f"in an order of version {now}, and this rwkvctl has version {now + 1}")


def test_another_spec_is_refused(saved: Path):
    state = make_state(3)
    state.spec = {"seed": 1, "train": {"precision": "bf16"}, "cluster": {"workers": 7}}
    refused(saved, state, r"another spec \(seed: 0 -> 1; train\.precision: None -> bf16\); set it back in the run's")


def test_a_checkpoint_of_another_format_is_refused(saved: Path):
    content = json.loads((saved / "state.json").read_text())
    content["schema"] = "rwkv-checkpoint/2"
    (saved / "state.json").write_text(json.dumps(content | {"checksum": checksum(content)}))
    refused(saved, make_state(3), "has the format rwkv-checkpoint/2, and this rwkvctl reads rwkv-checkpoint/1")


def test_what_may_not_be_read_is_no_damage(saved: Path, monkeypatch: pytest.MonkeyPatch):
    """A file of somebody else's: the older checkpoint would be a way back, but not what anybody wants."""

    def forbidden(path: Path, *_: Any, **__: Any) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("rwkvctl.training.checkpoint_folder.sha256_file", forbidden)
    with pytest.raises(PermissionError, match="step-00000002/"):
        resume(saved.parent, make_state(3))
