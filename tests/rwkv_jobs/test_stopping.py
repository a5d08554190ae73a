"""A run that is stopped: on request, or by SIGTERM on one of its ranks. It leaves a checkpoint of its last step."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rwkvctl.runs import job_record, state, stop

from .conftest import PATIENCE, Jobs, events, history, latest, mlflow_runs, wait_for_step, weights
from .test_interruptions import HELD, free_port

ASKED = """
from rwkv_jobs import stepper, stopping
from rwkvctl.runs import stop
stopping.LOOK_EVERY = 0.0
taken = stepper.Stepper.step
def step(self, loss_of, number, **options):
    if number == 4:
        stop.ask({run!r})
    return taken(self, loss_of, number, **options)
stepper.Stepper.step = step
"""


def log(run_dir: Path) -> list[str]:
    return run_dir.with_suffix(".log").read_text().splitlines()


def test_a_run_that_is_asked_to_stop_goes_on_to_the_same_weights(
    jobs: Jobs, children: list[Any], uninterrupted: Callable[[str], Path]
):
    run_dir = jobs.new("finetune", "stopped", "train.checkpoint_steps=null")
    children.append(process := jobs.start("finetune", run_dir, ASKED.format(run=str(run_dir))))
    process.join(PATIENCE)
    assert (process.exitcode, latest(run_dir).name) == (3, "step-00000005"), log(run_dir)
    assert log(run_dir)[-1] == "stopped; continue with: rwkvctl finetune --resume stopped"
    assert [(event["status"], event["reason"]) for event in events(run_dir, "end")] == [("KILLED", "stopped")]
    assert [run.info.status for run in mlflow_runs(jobs.home)] == ["KILLED"]
    found = state.of(run_dir)
    assert (found.state, found.exit_code, found.step, found.total) == ("stopped", 3, 5, 6)
    assert not (run_dir / "stop.json").exists(), "it is answered once"
    assert jobs.run("finetune", run_dir) == 0
    assert weights(run_dir) == weights(uninterrupted("finetune"))
    assert (state.of(run_dir).state, job_record.read(run_dir)["exit_code"]) == ("done", 0)


def test_a_run_that_does_not_come_to_its_next_step_is_stopped_all_the_same(jobs: Jobs, children: list[Any]):
    run_dir = jobs.new("finetune", "held")
    children.append(process := jobs.start("finetune", run_dir, HELD))
    wait_for_step(run_dir, 2)
    stop.ask(run_dir, now=True)
    process.join(PATIENCE)
    assert (process.exitcode, log(run_dir)[-1]) == (3, "stopped; continue with: rwkvctl finetune --resume held")


def test_a_run_that_is_stopped_before_it_begins_does_not_begin(jobs: Jobs):
    run_dir = jobs.new("finetune", "early")
    stop.ask(run_dir)
    assert jobs.run("finetune", run_dir) == 3
    assert not (run_dir / "journal.jsonl").exists()


def test_sigterm_on_one_rank_ends_all_behind_the_same_step(jobs: Jobs, children: list[Any]):
    run_dir = jobs.new("finetune", "preempted", "train.epochs=1000", "cluster.workers=2", "train.checkpoint_steps=null")
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "TORCHELASTIC_RUN_ID": "x"}
    ranks = [jobs.start("finetune", run_dir, RANK=str(rank), **group) for rank in range(2)]
    children.extend(ranks)
    wait_for_step(run_dir, 1)
    os.kill(ranks[1].pid, signal.SIGTERM)
    for rank in ranks:
        rank.join(PATIENCE)
    assert [rank.exitcode for rank in ranks] == [130, 130], log(run_dir)
    assert log(run_dir)[-1] == "interrupted; to continue, run the same torchrun command again"
    last = max(step for key, step, _ in history(run_dir) if key == "train/loss")
    assert latest(run_dir).name == f"step-{last:08}"
    assert state.of(run_dir).state == "interrupted"


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize("who", ["request", "driver", "worker"])
def test_workers_of_ray_stop_behind_a_step(jobs: Jobs, children: list[Any], who: str):
    """On request, and by SIGTERM of the driver or of a worker, whose process has a handler of Ray's own."""
    run_dir = jobs.new("finetune", "ray", "cluster.launcher=ray", "train.epochs=1000", "train.checkpoint_steps=null")
    children.append(driver := jobs.start("finetune", run_dir))
    wait_for_step(run_dir, 1)
    if who == "request":
        stop.ask(run_dir)
    else:
        holder = state.lease_holder(run_dir)
        assert holder is not None
        os.kill(driver.pid if who == "driver" else holder["pid"], signal.SIGTERM)
    driver.join(PATIENCE)
    assert driver.exitcode == (3 if who == "request" else 130), log(run_dir)
    last = max(step for key, step, _ in history(run_dir) if key == "train/loss")
    assert latest(run_dir).name == f"step-{last:08}"
    assert "Traceback" not in "\n".join(log(run_dir))
