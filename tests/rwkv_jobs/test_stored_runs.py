"""Trainings whose runs are kept in an object store: whole, killed, and with a store that fails."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from rwkv_jobs.entry import guarded
from rwkvctl.base.exit_codes import TRANSIENT
from rwkvctl.cli.runs import sync
from rwkvctl.runs import mirror, uploader
from rwkvctl.runs.journal import MEASURED

from ..real_cluster import new_node, trust
from ..store_door import Door, no_rule
from .conftest import PATIENCE, Jobs, events, history, mlflow_history, mlflow_runs, wait_for, weights
from .test_interruptions import DIE, WAIT_FOR_CHECKPOINT

NUMBERS = itertools.count()


@pytest.fixture
def storage(door: Door, home: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A place of the test's own, and a short patience with it."""
    door.rule = no_rule
    monkeypatch.setenv("RWKVCTL_CACHE", str(home / "a"))
    monkeypatch.setattr(uploader, "EVERY", 0.2)
    monkeypatch.setattr(uploader, "PAUSE", 0.05)
    return f"s3://bucket/jobs{next(NUMBERS)}"


def listing(storage: str) -> set[str]:
    """Keys, as another program sees them."""
    prefix = storage.removeprefix("s3://bucket/") + "/"
    pages = boto3.client("s3").get_paginator("list_objects_v2").paginate(Bucket="bucket", Prefix=prefix)
    return {one["Key"].removeprefix(prefix) for page in pages for one in page.get("Contents", ())}


def download(uri: str, folder: Path) -> Path:
    """A run as another program copies it, its journal put together."""
    client, prefix = boto3.client("s3"), uri.removeprefix("s3://bucket/") + "/"
    for key in sorted(listing(uri)):
        path = folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        client.download_file("bucket", prefix + key, str(path))
    segments = sorted((folder / "journal").iterdir())
    (folder / "journal.jsonl").write_bytes(b"".join(segment.read_bytes() for segment in segments))
    return folder


def repeatable(run_dir: Path) -> list[tuple[str, int, float]]:
    """The metrics that are the same in every run of a spec."""
    return sorted(entry for entry in history(run_dir) if not entry[0].endswith(MEASURED))


@pytest.mark.slow
def test_a_training_that_is_killed_goes_on_on_another_machine(
    storage: str,
    jobs: Jobs,
    uninterrupted: Callable[[str], Path],
    migrated_database: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    uri = f"{storage}/killed"
    run_dir = jobs.new("finetune", "killed", f"storage={storage}")
    process = jobs.start("finetune", run_dir, before=WAIT_FOR_CHECKPOINT + DIE.format(step=4))
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert {"checkpoints/latest.json", "checkpoints/step-00000003/state.json", "lease.json"} <= listing(uri)
    monkeypatch.setenv("RWKVCTL_CACHE", str(tmp_path / "b"))
    assert guarded("finetune", uri, []) == 0
    there = mirror.place(uri)
    assert there.is_relative_to(tmp_path / "b")
    plain = uninterrupted("finetune")
    for folder in (there, download(uri, tmp_path / "copy")):
        assert weights(folder) == weights(plain)
        assert repeatable(folder) == repeatable(plain)
        assert json.loads((folder / "result.json").read_text())["run"] == "killed"
    assert json.loads((there / "result.json").read_text())["model"] == f"{uri}/model"
    steps = {key.split("/")[1] for key in listing(uri) if key.startswith("checkpoints/step")}
    assert "step-00000006" in steps
    assert len(steps) <= 3
    assert "lease.json" not in listing(uri)
    assert not [key for key in listing(uri) if "AKIA" in key or key.startswith((".", "ray", "journal.jsonl"))]
    monkeypatch.setenv("RWKVCTL_CACHE", str(tmp_path / "c"))
    shutil.copy(migrated_database, tmp_path / "mlflow.db")
    sync(uri, f"sqlite:///{tmp_path / 'mlflow.db'}")  # from a third machine, to a server that has nothing of it
    [found] = mlflow_runs(tmp_path)
    assert sorted(mlflow_history(tmp_path, found)) == sorted(history(there))


@pytest.fixture
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a Ray cluster of two nodes, each with a cache of its own."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    trust(monkeypatch)
    monkeypatch.setenv("RAY_worker_niceness", "0")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for name in ("node1", "node2"):
        new_node(cluster, num_cpus=1, env_vars={"RWKVCTL_CACHE": str(tmp_path / name)})
    yield cluster.address
    cluster.shutdown()


@pytest.mark.slow
@pytest.mark.ray
def test_workers_on_nodes_that_share_nothing_but_the_store(
    storage: str, jobs: Jobs, apart: str, children: list[Any], tmp_path: Path
):
    """One is killed; all go on from the store, and end as two workers of one machine do."""
    uri, two = f"{storage}/apart", ["cluster.launcher=ray", "train.epochs=4"]
    run_dir = jobs.new("finetune", "apart", f"storage={storage}", *two, "cluster.nodes=2", f"cluster.address={apart}")
    children.append(driver := jobs.start("finetune", run_dir))
    wait_for(lambda: "checkpoints/step-00000002/state.json" in listing(uri) or not driver.is_alive(), "checkpoint")
    lease = boto3.client("s3").get_object(Bucket="bucket", Key=f"{uri.removeprefix('s3://bucket/')}/lease.json")
    os.kill(json.loads(lease["Body"].read())["pid"], signal.SIGKILL)
    driver.join(PATIENCE)
    assert driver.exitcode == 0, run_dir.with_suffix(".log").read_text()[-3000:]
    [line] = [entry["text"] for entry in events(run_dir, "message") if "starting all workers again" in entry["text"]]
    assert line.startswith("worker 0 on ")
    for node in ("node1", "node2"):
        assert list((tmp_path / node / "runs").glob("*/apart/spec.yaml"))
    alone = jobs.new("finetune", "alone", *two, "cluster.workers=2")
    children.append(driver := jobs.start("finetune", alone))
    driver.join(PATIENCE)
    assert driver.exitcode == 0, alone.with_suffix(".log").read_text()[-3000:]
    copy = download(uri, tmp_path / "copy")
    assert weights(copy) == weights(alone)
    assert repeatable(copy) == repeatable(alone)


@pytest.mark.slow
def test_steps_do_not_wait_for_a_slow_store_and_errors_are_told_once(
    storage: str,
    jobs: Jobs,
    door: Door,
    uninterrupted: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    """A checkpoint is on its way until a further step is taken; then the store answers 500 for a while."""
    run_dir = jobs.new("finetune", "slow", f"storage={storage}")
    seen: list[bool] = []
    told = threading.Event()

    def steps() -> set[int]:
        return {step for key, step, _ in history(run_dir) if key == "train/loss"}

    def slow(line: str) -> int | None:
        if line.startswith("PUT") and "step-00000004/model" in line and not seen:
            wait_for(lambda: 5 in steps(), "step 5")
            seen.append(True)
        if line.startswith("PUT") and seen and not told.is_set():
            if any("tries again" in entry["text"] for entry in events(run_dir, "message")):
                told.set()
            return 500
        return None

    door.rule = slow
    assert jobs.run("finetune", run_dir) == 0
    assert seen
    said = capsys.readouterr().out
    assert said.count("the run goes on, keeps everything in") == 1
    assert said.count("the store takes the run's files again") == 1
    assert weights(download(f"{storage}/slow", tmp_path / "copy")) == weights(uninterrupted("finetune"))
    sent = [entry["sent_bytes"] for entry in events(run_dir, "checkpoint")]
    assert sent[-1] > 1_000_000


@pytest.mark.slow
def test_a_store_that_refuses_from_some_time_on(
    storage: str,
    jobs: Jobs,
    door: Door,
    uninterrupted: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    """The run ends with what to do; done there, the store has all of it."""
    uri = f"{storage}/refused"
    run_dir = jobs.new("finetune", "refused", f"storage={storage}")
    refuse: list[bool] = []

    def rule(line: str) -> int | None:
        if "step-00000003" in line:
            refuse.append(True)
        return 403 if refuse and line.startswith("PUT") else None

    door.rule = rule
    assert jobs.run("finetune", run_dir) == TRANSIENT
    captured = capsys.readouterr()
    [line] = captured.err.splitlines()
    assert line.startswith(f"failed: {uri}/")
    assert "access denied (403)" in line
    assert line.endswith(f"send it from there: rwkvctl finetune --resume {uri}")
    assert captured.out.count("the run goes on, keeps everything in") == 1
    assert "AKIA" not in captured.out + captured.err
    assert not any(key.startswith("checkpoints/step-00000003") for key in listing(uri))
    door.rule = no_rule
    assert guarded("finetune", uri, []) == 0
    copy = download(uri, tmp_path / "copy")
    assert weights(copy) == weights(uninterrupted("finetune"))
    assert repeatable(copy) == repeatable(uninterrupted("finetune"))


@pytest.mark.slow
def test_a_store_that_refuses_at_the_start(storage: str, jobs: Jobs, door: Door, capsys: pytest.CaptureFixture[str]):
    run_dir = jobs.new("finetune", "new", f"storage={storage}")
    door.rule = lambda line: 403 if line.startswith("PUT") else None
    assert jobs.run("finetune", run_dir) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert (
        line == f"error: {storage}/new/lease.json: access denied (403); check the credentials and the bucket's policy"
    )
    assert not (run_dir / "journal.jsonl").exists()
