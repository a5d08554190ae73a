"""A run that is killed, interrupted or refused: what it leaves, and how it goes on."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rwkv_jobs import finetune
from rwkv_jobs.failed_step import read
from rwkv_jobs.replay import replay
from rwkvctl.cli import app
from rwkvctl.data.store.manifest import Manifest
from rwkvctl.runs import folder as run_folder
from rwkvctl.runs.journal import MEASURED
from rwkvctl.runs.lease import RunLease

from .conftest import PATIENCE, Jobs, events, history, latest, mlflow_history, mlflow_runs, wait_for_step, weights

DIE = """
import signal
from rwkv_jobs import stepper
taken = stepper.Stepper.step
def step(self, loss_of, number, **options):
    if number == {step}:
        os.kill(os.getpid(), signal.SIGKILL)
    return taken(self, loss_of, number, **options)
stepper.Stepper.step = step
"""
WAIT_FOR_CHECKPOINT = """
from rwkv_jobs.recorder import Recorder
written = Recorder.checkpoint
def checkpoint(self, state, **options):
    written(self, state, **options)
    self.finish_writing()
Recorder.checkpoint = checkpoint
"""
DAMAGE_BEST = """
from rwkv_jobs.recorder import Recorder
found = Recorder.best
def best(self):
    self.finish_writing()
    os.truncate(self.folder / "step-00000006" / "model.safetensors", 1000)
    return found(self)
Recorder.best = best
"""
HELD = """
import time
from rwkv_jobs import stepper
taken = stepper.Stepper.step
def step(self, loss_of, number, **options):
    if number == 2:  # in mid-epoch, for as long as it takes to be found there
        time.sleep(300)
    return taken(self, loss_of, number, **options)
stepper.Stepper.step = step
"""

DIVERGE = """
import torch
from rwkv_jobs import stepper
taken = stepper.Stepper.step
def step(self, loss_of, number, **options):
    if number == 3 and self.worker.rank == self.worker.world_size - 1:  # of one worker
        return taken(self, lambda part, total: loss_of(part, total) * torch.tensor(float("nan")), number, **options)
    return taken(self, loss_of, number, **options)
stepper.Stepper.step = step
"""
POISON = """
import torch
from rwkv_jobs import stepper
taken = stepper.Stepper.step
def step(self, loss_of, number, **options):
    found = taken(self, loss_of, number, **options)
    if number == 3:
        next(self.form.model.parameters()).data.view(-1)[0] = float("inf")
    return found
stepper.Stepper.step = step
"""
FULL = """
import resource
from rwkv_jobs import stepper
taken = stepper.Stepper.step
def step(self, loss_of, number, **options):
    if number == 5:
        resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, resource.RLIM_INFINITY))
    return taken(self, loss_of, number, **options)
stepper.Stepper.step = step
"""
TRACE_ONLY = """
import torch
from functools import partial
torch.compile = partial(torch.compile, backend="eager")  # code is generated in minutes, and is not the point
"""

SAMED = "model.name=samed_b model.options.width=64 model.options.depth=4"
"""Whose encoder is not trained."""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def kill_at(jobs: Jobs, kind: str, run_dir: Path, step: int, before: str = "") -> None:
    """Run until this step's gradient is due, and be killed there."""
    process = jobs.start(kind, run_dir, before + DIE.format(step=step))
    process.join(PATIENCE)
    assert process.exitcode == -signal.SIGKILL, run_dir.with_suffix(".log").read_text()


@pytest.mark.parametrize(
    ("kind", "step"),  # in mid-epoch, one step behind a checkpoint; and before the first checkpoint
    [("finetune", 5), ("pretrain", 5), ("cervix", 5), ("volumes", 5), ("finetune", 1)],
)
def test_a_killed_run_ends_with_the_weights_of_an_uninterrupted_one(
    jobs: Jobs, uninterrupted: Callable[[str], Path], kind: str, step: int
):
    straight = uninterrupted(kind)
    run_dir = jobs.new(kind, "killed")
    kill_at(jobs, kind, run_dir, step)
    assert (run_dir / "checkpoints" / "latest.json").exists() == (step > 2)
    assert jobs.run(kind, run_dir) == 0
    assert weights(run_dir) == weights(straight)
    seen = [(key, at) for key, at, _ in history(run_dir)]
    assert len(seen) == len(set(seen)), "every (key, step) once"
    expected = {(key, at, value) for key, at, value in history(straight) if not key.endswith(MEASURED)}
    assert {(key, at, value) for key, at, value in history(run_dir) if not key.endswith(MEASURED)} == expected
    [found] = [run for run in mlflow_runs(jobs.home) if run.info.run_name == "killed"]
    assert found.info.status == "FINISHED"
    assert sorted(mlflow_history(jobs.home, found)) == sorted(history(run_dir))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(
    jobs: Jobs, uninterrupted: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
):
    straight, run_dir = uninterrupted("finetune"), jobs.new("finetune", "damaged")
    kill_at(jobs, "finetune", run_dir, 5, WAIT_FOR_CHECKPOINT)
    newest = latest(run_dir)
    assert newest.name == "step-00000004"
    flip(newest / "optimizer.safetensors")
    capsys.readouterr()
    assert jobs.run("finetune", run_dir) == 0
    what = f"{newest.name}/optimizer.safetensors does not match its hash in state.json"
    text = f"{what}; going on from step-00000003"
    assert f"damaged checkpoint: {text}\n" in capsys.readouterr().out
    assert weights(run_dir) == weights(straight)
    expected = {(key, at, value) for key, at, value in history(straight) if not key.endswith(MEASURED)}
    assert {(key, at, value) for key, at, value in history(run_dir) if not key.endswith(MEASURED)} == expected
    [found] = [run for run in mlflow_runs(jobs.home) if run.info.run_name == "damaged"]
    assert (found.info.status, found.data.tags["rwkvctl.damaged_checkpoint"]) == ("FINISHED", text)


def test_a_damaged_best_checkpoint_is_told_and_the_newest_gives_the_model(
    jobs: Jobs, children: list[Any], capsys: pytest.CaptureFixture[str]
):
    """Damaged when training has ended."""
    run_dir = jobs.new("finetune", "run", "train.validate_every=0")
    children.append(process := jobs.start("finetune", run_dir, DAMAGE_BEST))
    process.join(PATIENCE)
    log = run_dir.with_suffix(".log").read_text()
    assert process.exitcode == 0, log
    text = (
        "step-00000006/model.safetensors does not match its hash in state.json; "
        "the model is that of step-00000004, the newest sound one, not the best"
    )
    assert f"damaged checkpoint: {text}" in log.splitlines()
    assert json.loads((run_dir / "result.json").read_text())["checkpoint"] == "step-00000004"
    [found] = mlflow_runs(jobs.home)
    assert found.data.tags["rwkvctl.damaged_checkpoint"] == text


@pytest.mark.slow
def test_a_compiled_run_goes_on_exactly_and_keeps_the_names_of_its_weights(
    jobs: Jobs, uninterrupted: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    run_dir = jobs.new("finetune", "killed", "train.compile=true")
    kill_at(jobs, "finetune", run_dir, 5, TRACE_ONLY)
    assert jobs.run("finetune", run_dir) == 0
    assert weights(run_dir) == weights(uninterrupted("finetune"))


@pytest.mark.slow
def test_a_run_with_a_frozen_encoder_goes_on_exactly_and_leaves_it_as_it_began(jobs: Jobs):
    """Nor does the moving average move; the weights beside the encoder do."""
    fields = [*SAMED.split(), "ema_decay=0.5"]
    assert jobs.run("finetune", "straight", *fields) == 0
    assert [x for x in events(jobs.runs / "straight", "message") if "encoder's weights, which start" in x["text"]]
    killed = jobs.new("finetune", "killed", *fields)
    kill_at(jobs, "finetune", killed, 5)
    assert jobs.run("finetune", killed) == 0
    assert weights(killed) == weights(jobs.runs / "straight")
    spec = run_folder.read_spec(killed)
    begun = finetune.make_model(spec, Manifest.load(spec.data.path), killed).state_dict()
    for name in ("model", "ema"):
        ended = load_file(latest(killed) / f"{name}.safetensors")
        same = [key for key, x in ended.items() if torch.equal(x, begun[key])]
        frozen = [key for key in begun if key.startswith("encoder.")]
        assert same == [*sorted(frozen), "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"], name


def test_recomputed_activations_change_nothing(jobs: Jobs, uninterrupted: Callable[[str], Path]):
    """Nor do batch norms count a batch twice."""
    assert jobs.run("finetune", "run", "train.activation_checkpointing=true") == 0
    assert weights(jobs.runs / "run") == weights(uninterrupted("finetune"))


def test_auto_finds_the_killed_run_and_a_finished_one_ends_well_again(jobs: Jobs):
    run_dir = jobs.new("finetune", "killed")
    spec = run_folder.read_spec(run_dir)
    kill_at(jobs, "finetune", run_dir, 4)
    assert run_folder.result(run_dir) is None
    assert run_folder.resume("auto", spec.model_copy(update={"name": None}), str(jobs.runs)) == run_dir
    assert jobs.run("finetune", run_dir) == 0
    before, told = weights(run_dir), history(run_dir)
    assert run_folder.resume("auto", spec.model_copy(update={"name": None}), str(jobs.runs)) is None
    assert jobs.run("finetune", run_dir) == 0
    assert (weights(run_dir), history(run_dir)) == (before, told)
    assert run_folder.result(run_dir) is not None
    [found] = mlflow_runs(jobs.home)
    assert found.info.status == "FINISHED"


@pytest.mark.parametrize(("number", "loaders"), [(signal.SIGINT, 1), (signal.SIGTERM, 0), (signal.SIGHUP, 0)])
def test_an_interrupted_run_says_so_and_goes_on(jobs: Jobs, children: list[Any], number: signal.Signals, loaders: int):
    run_dir = jobs.new("finetune", "stopped", f"data.workers={loaders}")  # Ctrl-C reaches the whole group
    process = jobs.start("finetune", run_dir, HELD)
    children.append(process)
    wait_for_step(run_dir, 2)
    os.killpg(process.pid, number) if number == signal.SIGINT else os.kill(process.pid, number)
    process.join(PATIENCE)
    assert process.exitcode == 130
    last = "interrupted; continue with: rwkvctl finetune --resume stopped"
    assert run_dir.with_suffix(".log").read_text().splitlines()[-1] == last
    assert "Traceback" not in run_dir.with_suffix(".log").read_text()
    assert [event["status"] for event in events(run_dir, "end")] == ["KILLED"]
    assert [run.info.status for run in mlflow_runs(jobs.home)] == ["KILLED"]
    assert run_folder.result(run_dir) is None
    assert jobs.run("finetune", run_dir) == 0
    assert [run.info.status for run in mlflow_runs(jobs.home)] == ["FINISHED"]


def test_a_run_that_is_being_trained_is_not_trained_twice(
    jobs: Jobs, children: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    run_dir = jobs.new("finetune", "busy", "train.epochs=30")
    process = jobs.start("finetune", run_dir, HELD)
    children.append(process)
    wait_for_step(run_dir, 1)
    monkeypatch.setattr("rwkv_jobs.driver.RunLease", partial(RunLease, wait=0.5))
    before = len(events(run_dir, "start"))
    assert jobs.run("finetune", run_dir) == 2
    assert one_error(capsys) == (
        f"run {run_dir} is being written by process {process.pid} on {os.uname().nodename}: "
        "stop that job first, or use another --name for this one"
    )
    assert len(events(run_dir, "start")) == before
    assert process.is_alive()


# What is refused ----------------------------------------------------------------------------------------------------


def one_error(capsys: pytest.CaptureFixture[str]) -> str:
    [line] = [line for line in capsys.readouterr().err.splitlines() if line]
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


def test_a_run_whose_data_changed_is_refused(jobs: Jobs, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    from rwkvctl.data.convert.prepare import prepare
    from rwkvctl.data.convert.synth import phantom

    data = tmp_path / "moving"
    shutil.copytree(jobs.shards / "polyps", data)
    run_dir = jobs.new("finetune", "run", data=data)
    kill_at(jobs, "finetune", run_dir, 4)
    phantom.write_polyps(tmp_path / "raw", n=20, size=40, seed=1)
    prepare("folder", [tmp_path / "raw"], data, seeds=[41], overwrite=True)
    kept = {path: path.read_bytes() for path in latest(run_dir).iterdir()}
    capsys.readouterr()
    assert jobs.run("finetune", run_dir) == 2
    assert "restore the data or start a new run" in one_error(capsys)
    assert {path: path.read_bytes() for path in latest(run_dir).iterdir()} == kept


def test_another_spec_than_the_checkpoints_and_no_sound_checkpoint_are_refused(
    jobs: Jobs, capsys: pytest.CaptureFixture[str]
):
    run_dir = jobs.new("finetune", "run")
    kill_at(jobs, "finetune", run_dir, 4)
    spec = run_folder.read_spec(run_dir)
    run_folder.write_spec(run_dir, spec.model_copy(update={"seed": 7}))
    capsys.readouterr()
    assert jobs.run("finetune", run_dir) == 2
    said = f"was trained with another spec (seed: {spec.seed} -> 7); set it back in the run's spec.yaml"
    assert said in one_error(capsys)
    run_folder.write_spec(run_dir, spec)
    for path in (run_dir / "checkpoints").glob("step-*/optimizer.safetensors"):
        flip(path)
    capsys.readouterr()
    assert jobs.run("finetune", run_dir) == 2
    assert one_error(capsys).startswith(f"{run_dir}/checkpoints: no checkpoint is sound (step-0000000")
    assert not (run_dir / "model").exists()


def test_a_damaged_shard_is_refused_before_anything_is_written(
    jobs: Jobs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    data = tmp_path / "damaged"
    shutil.copytree(jobs.shards / "polyps", data)
    shard = next(data.glob("*.tar"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    run_dir = jobs.new("finetune", "run", data=data)
    assert jobs.run("finetune", run_dir) == 2
    assert str(shard) in one_error(capsys)
    assert not run_dir.exists()
    assert mlflow_runs(jobs.home) == []


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ("model.name=rwkv_unet_x", "rwkv_unet_x"),
        ("model.attention=mhsa model.encoder=resnet18", "mhsa"),
        ("model.encoder_weights=nowhere", "run 'nowhere' is not in"),
        ("data.split=nope", "nope"),
        (
            f"{SAMED} freeze_encoder=1",
            "freeze_encoder: samed_b keeps its encoder's weights in every epoch; set it to 0",
        ),
        (f"{SAMED} optimizer.layer_decay=0.7", "optimizer.layer_decay: this network keeps its encoder's weights; set"),
        ("train.batch_size=64 train.tail=drop", "train.batch_size 64 is more than the 12 training samples"),
        ("cluster.workers=2", "needs torchrun --nproc-per-node 2"),
    ],
)
def test_what_cannot_work_leaves_no_run(jobs: Jobs, overrides: str, said: str, capsys: pytest.CaptureFixture[str]):
    run_dir = jobs.new("finetune", "run", *overrides.split())
    assert jobs.run("finetune", run_dir) == 2
    assert said in one_error(capsys)
    assert not run_dir.exists()
    assert mlflow_runs(jobs.home) == []


def test_a_loss_that_is_no_number_fails_in_one_line(jobs: Jobs, capsys: pytest.CaptureFixture[str]):
    """With the default interval of the log, which is longer than the run. The step can be looked into afterwards."""
    assert jobs.run("finetune", "run", "optimizer.lr=1e30", "train.log_steps=10") == 1
    [line] = [line for line in capsys.readouterr().err.splitlines() if line]
    assert re.match(r"failed: step 2: the (loss|gradient) is not finite; start a new run with optimizer.lr below", line)
    assert line.endswith("; look into it with: rwkvctl run replay run")
    assert [run.info.status for run in mlflow_runs(jobs.home)] == ["FAILED"]
    run_dir = jobs.runs / "run"
    assert [path.parent.name for path in run_dir.rglob("*.safetensors")] == ["failed-step"]
    kept = read(run_dir)
    assert (kept["step"], kept["consumed"], kept["world_size"], len(kept["samples"])) == (1, 4, 1, 4)
    found = replay(run_dir)
    assert found[0].startswith("step 2, in epoch 1, on cpu in fp32; the ")
    assert found[1] == f"samples: {', '.join(kept['samples'])}"
    assert re.match(r"forward: the output of \S+ is the first that is not finite", found[2])


def test_a_run_that_diverges_keeps_its_last_whole_checkpoint(jobs: Jobs, children: list[Any]):
    run_dir = jobs.new("finetune", "run", "train.log_steps=10")
    children.append(process := jobs.start("finetune", run_dir, DIVERGE))
    process.join(PATIENCE)
    assert process.exitcode == 1
    log = run_dir.with_suffix(".log").read_text()
    assert "failed: step 4: the loss is not finite; start a new run with" in log
    assert "Traceback" not in log
    assert latest(run_dir).name == "step-00000003"
    assert not (run_dir / "model").exists()


def test_two_workers_stop_together_when_one_diverges(jobs: Jobs, children: list[Any]):
    run_dir = jobs.new("finetune", "two", "cluster.workers=2", "train.log_steps=10")
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    processes = [jobs.start("finetune", run_dir, DIVERGE, RANK=str(rank), **group) for rank in range(2)]
    children += processes
    for process in processes:
        process.join(PATIENCE)
    assert [process.exitcode for process in processes] == [1, 1]
    assert run_dir.with_suffix(".log").read_text().count("failed: step 4: the loss is not finite") == 2


def test_weights_that_are_not_finite_are_not_kept(jobs: Jobs, children: list[Any]):
    """The last update of an epoch, after which no loss is computed."""
    run_dir = jobs.new("finetune", "run")
    children.append(process := jobs.start("finetune", run_dir, POISON))
    process.join(PATIENCE)
    assert process.exitcode == 1
    assert re.search("^failed: step 4: model .* is not finite", run_dir.with_suffix(".log").read_text(), re.MULTILINE)
    assert latest(run_dir).name == "step-00000003"


# A disk that is full -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [40_000, 4_000_000])  # too little for MLflow's database too, or for weights only
def test_a_full_disk_is_one_line_and_the_run_goes_on_later(
    jobs: Jobs, uninterrupted: Callable[[str], Path], children: list[Any], limit: int
):
    run_dir = jobs.new("finetune", "full")
    kill_at(jobs, "finetune", run_dir, 4)
    children.append(process := jobs.start("finetune", run_dir, FULL.format(limit=limit)))
    process.join(PATIENCE)
    assert process.exitcode == 1
    log = run_dir.with_suffix(".log").read_text()
    [line] = [line for line in log.splitlines() if line.startswith("failed: ")]
    assert "File too large; free some space" in line
    assert str(run_dir) in line
    assert "Traceback" not in log
    statuses = {run.info.status for run in mlflow_runs(jobs.home) if run.info.run_name == "full"}
    assert statuses == {"FAILED"} or limit == 40_000, "where the database is on another disk"
    assert jobs.run("finetune", run_dir) == 0
    assert weights(run_dir) == weights(uninterrupted("finetune"))
    assert {run.info.status for run in mlflow_runs(jobs.home)} == {"FINISHED"}


def test_another_spec_is_refused(jobs: Jobs):
    run_dir = jobs.new("finetune", "run")
    changed = run_folder.read_spec(run_dir).model_copy(update={"seed": 7})
    with pytest.raises(ValueError, match="was started with another spec"):
        run_folder.resume("run", changed, str(jobs.runs))


# Without MLflow -----------------------------------------------------------------------------------------------------

WITHOUT_RAY_AND_MLFLOW = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("ray", "mlflow"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
for name in [name for name in sys.modules if name.split(".")[0] in ("ray", "mlflow")]:
    del sys.modules[name]
sys.meta_path.insert(0, Absent())
"""


@pytest.mark.parametrize("kind", ["finetune", "pretrain"])
def test_training_needs_neither_ray_nor_mlflow(
    jobs: Jobs, children: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: str
):
    run_dir = jobs.new(kind, "offline")
    children.append(process := jobs.start(kind, run_dir, WITHOUT_RAY_AND_MLFLOW))
    process.join(PATIENCE)
    log = run_dir.with_suffix(".log").read_text()
    assert process.exitcode == 0, log
    assert "register it later with: rwkvctl sync offline" in log
    assert [step for key, step, _ in history(run_dir) if key == "train/loss"] == list(range(1, 7))
    assert events(run_dir, "end")[-1]["status"] == "FINISHED"
    assert (run_dir / "model" / "weights.safetensors").exists()
    assert mlflow_runs(jobs.home) == []

    for _ in range(2):  # sent once, however often it is asked for
        monkeypatch.setattr("sys.argv", ["rwkvctl", "sync", "offline"])
        app.app(standalone_mode=False)
        [found] = mlflow_runs(jobs.home)
        assert sorted(mlflow_history(jobs.home, found)) == sorted(history(run_dir))
        assert (found.info.run_name, found.info.status) == ("offline", "FINISHED")
    name = "rwkv_unet_polyps" if kind == "finetune" else "rwkv_unet_enc_xt"
    assert f"registered models:/{name}/1" in capsys.readouterr().out


def test_a_tracking_server_that_is_down_does_not_stop_a_training(jobs: Jobs, capsys: pytest.CaptureFixture[str]):
    from rwkvctl.runs.sync import sync_run

    assert jobs.run("finetune", "run", "train.epochs=1", "tracking.uri=http://127.0.0.1:9") == 0
    run_dir = jobs.runs / "run"
    result = json.loads((run_dir / "result.json").read_text())
    assert result["model_uri"] is None
    assert "not registered" in capsys.readouterr().out
    sent = sync_run(run_dir, f"sqlite:///{jobs.home / 'mlflow.db'}")
    assert sent.metrics == len(history(run_dir))
    [found] = mlflow_runs(jobs.home)
    assert sorted(mlflow_history(jobs.home, found)) == sorted(history(run_dir))
    assert found.info.status == "FINISHED"
