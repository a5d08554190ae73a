"""The rendered sbatch script with real Ray on two nodes that are network namespaces: its time ends, it goes on."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rwkvctl.base import files
from rwkvctl.data.convert.prepare import prepare
from rwkvctl.data.convert.synth import phantom
from rwkvctl.runs import journal

from ..namespaces import network
from .stand_ins import Slurm, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.ray]
HOSTS = ["10.78.0.10", "10.78.0.11"]


@pytest.fixture
def namespaces() -> Iterator[list[str]]:
    """Two nodes with an address each."""
    with network(HOSTS) as nodes:
        yield nodes


@pytest.fixture(autouse=True)
def one_ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Not beside another test that starts Ray, which has 30 seconds to start."""
    with files.locked(tmp_path_factory.getbasetemp().parent / "ray"):
        yield


@pytest.fixture
def temporary() -> Iterator[Path]:
    """Ray's sockets need a short path; every node has a folder of its own mounted here."""
    folder = Path(f"/tmp/sl{os.getpid()}")
    folder.mkdir()
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def started(run: Path) -> list[int]:
    """The step that each start of the run began with."""
    if not (run / "journal.jsonl").exists():
        return []
    return [entry["step"] for entry in journal.read(run / "journal.jsonl")[0] if entry.get("event") == "plan"]


def last_before_the_second(run: Path) -> int:
    """The last step that was logged before the run was started again."""
    last, plans = 0, 0
    for entry in journal.read(run / "journal.jsonl")[0]:
        plans += entry.get("event") == "plan"
        if plans == 1 and entry["kind"] == "metrics" and "train/loss" in entry["values"]:
            last = max(last, entry["step"])
    return last


def steps(run: Path) -> list[int]:
    """The steps whose loss was logged, in order."""
    if not (run / "journal.jsonl").exists():
        return []
    entries = [entry for entry in journal.read(run / "journal.jsonl")[0] if entry["kind"] == "metrics"]
    return [entry["step"] for entry in entries if "train/loss" in entry["values"]]


def test_a_job_whose_time_ends_is_requeued_and_goes_on(
    namespaces: list[str], temporary: Path, migrated_database: Path, tmp_path: Path
):
    raw = phantom.write_polyps(tmp_path / "raw", n=16, size=40)
    prepare("folder", [raw], tmp_path / "shards", seeds=[41])
    home = tmp_path / "home"
    home.mkdir()
    shutil.copy(migrated_database, home / "mlflow.db")
    small = ["data.image_size=32", "data.workers=0", "train.log_steps=1", "train.checkpoint_steps=100"]
    small += ["train.epochs=20", "train.batch_size=4", "train.validate_every=0"]
    command = ["finetune", "binary", "--variant", "xt", "--data", str(tmp_path / "shards"), "--name", "mine"]
    command += ["--nodes", "2", "--gpus-per-node", "0", *(word for field in small for word in ("--set", field))]
    environment = {"RWKVCTL_HOME": str(home), "OMP_NUM_THREADS": "1", "TMPDIR": str(temporary)}
    script = tmp_path / "job.sh"
    with script.open("w") as file:
        program = [sys.executable, "-m", "rwkvctl.cli.app", *command, "--render", "slurm"]
        subprocess.run(program, stdout=file, check=True, env=os.environ | environment)

    cluster, run = Slurm(tmp_path / "slurm", HOSTS, namespaces), home / "runs" / "mine"
    try:
        cluster.submit(script, starts=2, **environment)
        wait_for(lambda: steps(run)[-1:] >= [5], "step 5", said=cluster.log)
        cluster.signal()
        assert cluster.wait() == [130, 0], cluster.log()
    finally:
        cluster.end()
    assert cluster.tasks() == [[130, 130], [0, 0]]
    assert "requeued: its time was over" in cluster.log()
    first, second = started(run)
    assert first == 0
    assert second == last_before_the_second(run) >= 5, "it goes on behind its last step: the signal made a checkpoint"
    assert steps(run)[-1] == 60
    assert (run / "model" / "model.json").exists()
    assert "registered models:/" in cluster.log()
    address = (home / "runs" / ".slurm" / "4321" / "head").read_text()
    assert address.startswith(HOSTS[0]), "not the address that the host's name leads to"
