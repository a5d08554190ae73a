"""What the recorder tells of checkpoints that are slow, fail or are damaged."""

from __future__ import annotations

import errno
import os
import threading
import time
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import pytest
import torch

from rwkv_jobs import recorder as module
from rwkv_jobs.form import TrainingForm
from rwkv_jobs.recorder import Recorder
from rwkv_jobs.stepper import Stepper
from rwkv_jobs.worker import Worker, worker
from rwkvctl.base.errors import JobFailedError
from rwkvctl.config.specs.jobs import FinetuneSpec
from rwkvctl.config.specs.parts import ClusterSpec
from rwkvctl.training import checkpoint_write
from rwkvctl.training.checkpoint import TrainState
from rwkvctl.training.checkpoint_write import save_checkpoint

from ..rwkvctl.training.tiny_state import make_state, train
from .conftest import PATIENCE, events, server
from .test_interruptions import free_port

ALONE = Worker(0, 1, torch.device("cpu"))


def full(*_: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def end(run_dir: Path, state: TrainState, error: BaseException) -> None:
    """A run that ends while its checkpoint is being written."""
    with Recorder(ALONE, run_dir) as recorder:
        recorder.checkpoint(state)
        raise error


def messages(run_dir: Path) -> list[str]:
    return [event["text"] for event in events(run_dir, "message")]


def test_the_journal_of_its_steps_is_on_the_disk_before_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    state, order = make_state(0), []
    with Recorder(ALONE, tmp_path) as recorder:
        flush, replace = recorder.journal.flush, Path.replace
        recorder.writer.before = lambda: order.append("journal") or flush()
        monkeypatch.setattr(Path, "replace", lambda *a: order.append(Path(a[1]).name) or replace(*a))
        train(state, 1)
        recorder.checkpoint(state, best=True)
    assert [name for name in order if name == "journal" or name.startswith(("step", "best", "latest"))] == [
        "journal",
        "step-00000001",
        "best.json",
        "latest.json",
    ]
    [told] = events(tmp_path, "checkpoint")
    assert (told["step"], told["best"]) == (1, True)


def test_a_failed_checkpoint_ends_the_only_worker_at_the_next_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    state = make_state(0)
    monkeypatch.setattr(checkpoint_write, "write_files", full)

    def run() -> None:
        with Recorder(ALONE, tmp_path) as recorder:
            train(state, 1)
            recorder.checkpoint(state)
            while True:
                recorder.metrics(None, 2)

    with pytest.raises(JobFailedError) as caught:
        run()
    folder = tmp_path / "checkpoints"
    said = f"step 1: cannot write a checkpoint: {folder}: No space left on device; free some space"
    assert str(caught.value) == said
    assert not (tmp_path / "lease.json").exists()


def test_what_failed_first_is_told(tmp_path: Path):
    """Weights that are not finite lead to a loss that is not, often before their checkpoint was looked at."""
    state = make_state(0)
    next(state.model.parameters()).data[0] = float("nan")
    with pytest.raises(JobFailedError, match=r"step 0: model .* is not finite"):
        end(tmp_path, state, JobFailedError("step 1: the loss is not finite"))


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("a fault of ours")])
def test_another_end_stays_what_it_is_and_the_checkpoint_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Any
):
    monkeypatch.setattr(checkpoint_write, "write_files", full)
    state = make_state(0)
    with pytest.raises((KeyboardInterrupt, RuntimeError)) as caught:
        end(tmp_path, state, error)
    assert not isinstance(caught.value, JobFailedError)
    assert "step 0: cannot write a checkpoint" in messages(tmp_path)[-1]


def test_an_interrupted_run_waits_for_what_is_being_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    written, write = [], checkpoint_write.write_files

    def slow(*args: Any) -> None:
        time.sleep(0.1)
        write(*args)
        written.append(args)

    monkeypatch.setattr(checkpoint_write, "write_files", slow)
    state = make_state(0)
    with pytest.raises(KeyboardInterrupt):
        end(tmp_path, state, KeyboardInterrupt())
    assert len(written) == 1
    assert (tmp_path / "checkpoints" / "latest.json").exists()
    assert not [t for t in threading.enumerate() if t.name.startswith("checkpoint")]


def test_waiting_for_the_disk_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "LONG_WAIT", -1.0)
    state = make_state(0)
    with Recorder(ALONE, tmp_path) as recorder:
        for _ in range(3):
            train(state, 1)
            recorder.checkpoint(state)
    [text] = messages(tmp_path)
    assert text.startswith("step 1: waited 0.0 s for the former checkpoint to be written; write them less often")


def test_a_lost_best_is_told_and_the_next_epochs_compete(tmp_path: Path):
    state = make_state(0)
    with Recorder(ALONE, tmp_path) as recorder:
        for epoch, best in ((1, True), (2, False)):
            train(state, 1)
            state.position.epoch, state.position.consumed = epoch, 0
            state.position.best, state.position.best_epoch = 0.5, 1
            recorder.checkpoint(state, best=best)
    os.truncate(tmp_path / "checkpoints" / "step-00000001" / "model.safetensors", 99)
    found = make_state(9)
    with Recorder(ALONE, tmp_path) as recorder:
        recorder.restore(found)
    assert (found.position.step, found.position.best) == (2, None)
    what = "step-00000001/model.safetensors does not match its hash in state.json"
    assert messages(tmp_path) == [f"damaged checkpoint: {what}; the best of the epochs from here on is kept"]


# Two workers ---------------------------------------------------------------------------------------------------------


def rank_of_two(environment: dict[str, str], run_dir: Path) -> None:
    """Go on from what is there, then write two checkpoints to a disk that is full; what came of it in `<rank>.txt`."""
    os.environ.update(environment)
    said = []
    with worker(ClusterSpec(launcher="process")) as me:
        try:
            with Recorder(me, run_dir) as recorder:
                state = make_state(9)
                state.position.best = 7.0  # of its own, which must not stay
                recorder.restore(state)
                said.append(f"step {state.position.step}, best {state.position.best}")
                checkpoint_write.write_files = full
                for _ in range(2):
                    train(state, 1)
                    recorder.checkpoint(state)
                    said.append("went on")
        except JobFailedError as error:
            said.append(str(error))
        Path(f"{run_dir}.{me.rank}").write_text("\n".join(said))


def rank_with_a_full_disk(environment: dict[str, str], out: Path) -> None:
    """What came of it in `<rank>.txt`: as on a CPU, then as on a GPU, which is not read before metrics are due."""
    os.environ.update(environment)
    checkpoint_write.write_files = full
    with worker(ClusterSpec(launcher="process")) as me:
        said = [until_told(me, out.with_name(f"run-{at_once}"), at_once) for at_once in (True, False)]
        Path(f"{out}.{me.rank}").write_text("\n".join(said))


def until_told(me: Worker, run_dir: Path, at_once: bool) -> str:
    """Train on after a checkpoint has failed on rank 0: at which step it ended, and with what."""
    train_fields = {"epochs": 1, "batch_size": 2, "precision": "fp32", "batch_norm": "local"}
    fields = {"data": {"image_size": 32}, "train": train_fields, "optimizer": {"lr": 1e-3, "schedule": "constant"}}
    spec = FinetuneSpec.model_validate(fields)
    state, step = make_state(0), 0
    form = TrainingForm(state.model, spec, me)

    def loss_of(_: int, total: Any) -> torch.Tensor:
        return total(form(torch.ones(1, 3, 8, 8)).square().sum()[None])[0]

    try:
        with Recorder(me, run_dir) as recorder:
            said = recorder.say, recorder.failure
            stepper = Stepper(spec, me, form, state.optimizer, 9, state.position, *said)
            stepper.looks_at_once = at_once
            recorder.checkpoint(state)
            if me.is_main:
                wait([recorder.writer.writing])
            me.barrier()
            for step in range(5):
                stepper.step(loss_of, step, linear=False)
            stepper.metrics()
    except JobFailedError as error:
        return f"{step}: {error}"
    return "never told"


def test_all_workers_learn_of_a_full_disk_at_the_next_look(tmp_path: Path, children: list[Any]):
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    for rank in range(2):
        arguments = (group | {"RANK": str(rank)}, tmp_path / "said")
        children.append(process := server().Process(target=rank_with_a_full_disk, args=arguments))
        process.start()
    for process in children:
        process.join(PATIENCE)
        assert process.exitcode == 0
    lines = [
        f"{taken}: step 0: cannot write a checkpoint: {tmp_path}/run-{mode}/checkpoints: "
        "No space left on device; free some space"
        for taken, mode in ((0, True), (4, False))
    ]
    for rank in range(2):
        assert Path(f"{tmp_path}/said.{rank}").read_text().splitlines() == lines


def test_two_workers_go_on_from_the_same_checkpoint_and_end_together(tmp_path: Path, children: list[Any]):
    run_dir = tmp_path / "run"
    state = make_state(0)
    for _ in range(2):
        train(state, 1)
        save_checkpoint(run_dir / "checkpoints", state, best=True)
    os.truncate(run_dir / "checkpoints" / "step-00000002" / "model.safetensors", 99)
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    for rank in range(2):
        children.append(process := server().Process(target=rank_of_two, args=(group | {"RANK": str(rank)}, run_dir)))
        process.start()
    for process in children:
        process.join(PATIENCE)
        assert process.exitcode == 0
    problem = f"step 2: cannot write a checkpoint: {run_dir}/checkpoints: No space left on device; free some space"
    for rank in range(2):
        assert Path(f"{run_dir}.{rank}").read_text().splitlines() == ["step 1, best None", "went on", problem]
    assert "going on from step-00000001" in messages(run_dir)[0]
