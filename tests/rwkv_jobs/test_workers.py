"""Two workers: the launchers agree bit for bit, whoever is killed on the way, and one worker can go on for two."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from rwkv_jobs.epochs import train_loader
from rwkv_jobs.worker import Worker
from rwkvctl.data.store.manifest import Manifest
from rwkvctl.runs import folder as run_folder
from rwkvctl.runs import samples_seen

from .conftest import PATIENCE, Jobs, history, latest, mlflow_history, mlflow_runs, wait_for_step, weights
from .test_interruptions import DIE, WAIT_FOR_CHECKPOINT, free_port

TWO = ["train.epochs=5", "cluster.workers=2"]  # long enough to be killed twice on the way
RAY = [*TWO, "cluster.launcher=ray"]


def torchrun(jobs: Jobs, name: str) -> Path:
    """A two-process run, started as a user of torchrun does: from the recipe, by every rank."""
    recipe, own = jobs.settings("finetune", f"name={name}", *TWO)
    sets = [word for assignment in own for word in ("--set", assignment)]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, "-m", "rwkv_jobs.finetune", recipe, *sets],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return jobs.runs / name


def leader(run_dir: Path) -> int:
    """Process id of rank 0, from its lease on the run."""
    return json.loads((run_dir / "lease.json").read_text())["pid"]


def once(run_dir: Path) -> None:
    """Every (key, step) once in the journal, and the same in the one MLflow run."""
    seen = [(key, step) for key, step, _ in history(run_dir)]
    assert len(seen) == len(set(seen))
    home = run_dir.parent.parent
    [found] = [run for run in mlflow_runs(home) if run.info.run_name == run_dir.name]
    assert found.info.status == "FINISHED"
    assert sorted(mlflow_history(home, found)) == sorted(history(run_dir))


@pytest.mark.slow
@pytest.mark.ray
def test_ray_equals_torchrun_whoever_is_killed(jobs: Jobs, children: list[Any]):
    expected = torchrun(jobs, "torchrun")
    once(expected)
    run_dir = jobs.new("finetune", "ray", *RAY)
    children.append(driver := jobs.start("finetune", run_dir))
    wait_for_step(run_dir, 2)
    os.kill(leader(run_dir), signal.SIGKILL)
    wait_for_step(run_dir, 5)
    assert driver.is_alive(), "the worker was replaced"
    driver.kill()
    children.append(driver := jobs.start("finetune", run_dir))
    driver.join(PATIENCE)
    assert driver.exitcode == 0, run_dir.with_suffix(".log").read_text()[-3000:]
    assert weights(run_dir) == weights(expected)
    once(run_dir)


def test_one_worker_goes_on_for_two_at_the_exact_sample(jobs: Jobs, tmp_path: Path):
    run_dir = jobs.new("finetune", "two", *TWO)
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    die = WAIT_FOR_CHECKPOINT + DIE.format(step=5)
    processes = [jobs.start("finetune", run_dir, die, RANK=str(rank), **group) for rank in range(2)]
    for process in processes:
        process.join(PATIENCE)
    assert [process.exitcode for process in processes] == [-signal.SIGKILL] * 2
    position = json.loads((latest(run_dir) / "state.json").read_text())["position"]
    assert (position["step"], position["consumed"]) == (4, 4), "in mid-epoch"
    spec = run_folder.read_spec(run_dir)
    alone = spec.cluster.model_copy(update={"workers": 1})
    run_folder.write_spec(run_dir, spec.model_copy(update={"cluster": alone}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(samples_seen.VARIABLE, str(tmp_path))
        seen = record_keys(patch)
        assert jobs.run("finetune", run_dir) == 0
    assert seen == expected_keys(spec, position)
    [life] = samples_seen.lives(tmp_path)
    assert [key for step in life.steps for key in step.ids] == seen
    assert [step.number for step in life.steps] == list(range(5, 16))
    once(run_dir)


def record_keys(patch: pytest.MonkeyPatch) -> list[str]:
    """The keys of all samples that are trained on from now on."""
    from rwkvctl.data.feed.loaders import TrainLoader

    seen: list[str] = []
    epoch = TrainLoader.epoch

    def watched(self: Any, *args: Any) -> Any:
        for batch in epoch(self, *args):
            seen.extend(batch.keys)
            yield batch

    patch.setattr(TrainLoader, "epoch", watched)
    return seen


def expected_keys(spec: Any, position: dict[str, Any]) -> list[str]:
    """What is left of the epoch at a position, and the epochs after it, by the loader alone."""
    manifest = Manifest.load(spec.data.path)
    loader = train_loader(spec, spec.augment, manifest, Worker(0, 1, torch.device("cpu")))
    keys = [key for epoch in range(spec.train.epochs) for batch in loader.epoch(epoch) for key in batch.keys]
    return keys[position["step"] * spec.train.batch_size :]
