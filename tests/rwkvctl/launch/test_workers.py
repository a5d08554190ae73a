"""Workers on a real Ray cluster of several nodes: what fails, what is said of it, and what is run again."""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rwkvctl.base.errors import JobFailedError, TransientError, UserError
from rwkvctl.base.files import write_bytes
from rwkvctl.config.specs.jobs import FinetuneSpec
from rwkvctl.launch import workers
from rwkvctl.runs.journal import read

from ...real_cluster import new_node, trust
from . import toy

pytestmark = [pytest.mark.slow, pytest.mark.ray]
PATIENCE = 900.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head without CPUs and two nodes of two."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        root = Path(__file__).parents[3]  # where the nodes import `toy` from
        patch.setenv("PYTHONPATH", os.pathsep.join([str(root), *filter(None, sys.path)]))
        trust(patch)
        for name, value in HEALTH.items():
            patch.setenv(name, value)
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        made.own = [new_node(made, num_cpus=2) for _ in range(2)]
        yield made
        made.shutdown()


HEALTH = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "5000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_worker_niceness": "0",
}


def spec_of(cluster: Any, **fields: Any) -> FinetuneSpec:
    return FinetuneSpec.model_validate(
        {
            "data": {"path": "/nowhere", "dataset": "toy"},
            "train": {"batch_size": 4, "epochs": 1},
            "optimizer": {"lr": 1e-3},
            "cluster": {"address": cluster.address, **fields},
        }
    )


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    (tmp_path / "journal.jsonl").touch()
    return tmp_path


def run(spec: FinetuneSpec, run_dir: Path, **plan: Any) -> None:
    (run_dir / "plan.json").write_text(json.dumps(plan))
    workers.run_workers(toy.count, spec, run_dir)


def steps(run_dir: Path) -> list[list[Any]]:
    return [json.loads(line) for line in (run_dir / "steps.jsonl").read_text().splitlines()]


def said(run_dir: Path) -> list[str]:
    entries, _ = read(run_dir / "journal.jsonl")
    return [entry["text"] for entry in entries if entry.get("event") == "message"]


def test_nodes_times_workers(cluster: Any, run_dir: Path):
    run(spec_of(cluster, nodes=2, gpus_per_node=2), run_dir)
    assert [step for step, *_ in steps(run_dir)] == list(range(toy.STEPS))
    assert {world for _, world, _ in steps(run_dir)} == {4}
    assert said(run_dir) == []


FAULTS = [
    # fault, fields of the cluster, what is said of it once (a worker is replaced and the steps go on)
    ("killed", {}, "was killed by SIGKILL (out of memory?) at step 5; starting all workers again (1 of 3)"),
    ("exits", {}, "ended with code 7 at step 5; starting all workers again"),
    ("raises", {}, "failed (RuntimeError: an error that may pass) at step 5"),
    ("suspended", {"hang_timeout": 3}, "no worker has moved for 3 s; worker 1 on {host} is suspended"),
    ("stuck", {"hang_timeout": 3}, "no worker has moved for 3 s; worker 1 on {host} stands still in: data"),
]


@pytest.mark.parametrize(("fault", "fields", "text"), FAULTS, ids=[fault for fault, *_ in FAULTS])
def test_a_worker_that_fails_is_named_and_all_go_on(
    cluster: Any, run_dir: Path, fault: str, fields: dict[str, Any], text: str
):
    import socket

    run(spec_of(cluster, nodes=2, **fields), run_dir, fault=fault, rank=1, step=5)
    assert [step for step, *_ in steps(run_dir)] == list(range(toy.STEPS)), "every step once"
    [line] = said(run_dir)
    assert text.format(host=f"{socket.gethostname()} ({cluster.own[0].node_ip_address})") in line
    lives = {life for _, _, life in steps(run_dir)}
    assert len(lives) == 2, "all workers were started once more"
    if fault in ("suspended", "stuck"):
        stacks = (run_dir / "artifacts" / "stacks" / "step-5-rank-1.txt").read_text()
        assert ("is suspended" if fault == "suspended" else "in suffer") in stacks
        assert "in meet" in (run_dir / "artifacts" / "stacks" / "step-5-rank-0.txt").read_text()


@pytest.mark.parametrize(
    ("fault", "error", "text"),
    [
        ("user error", UserError, "data: not as it should be"),
        ("job failed", JobFailedError, "step 3: the loss is not finite"),
        ("raises", JobFailedError, "the workers failed 2 times in a row; the last time at step 5: worker 1"),
        ("killed", TransientError, "the workers failed 2 times in a row; the last time at step 5: worker 1"),
    ],
)
def test_what_would_fail_again_ends_the_job(cluster: Any, run_dir: Path, fault: str, error: type[Exception], text: str):
    with pytest.raises(error) as raised:
        run(spec_of(cluster, nodes=2, max_failures=1), run_dir, fault=fault, rank=1, step=5, always=True)
    assert type(raised.value) is error
    assert str(raised.value).startswith(text)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"nodes": 3}, "cluster.nodes 3: 3 nodes with 1 CPUs are needed, and 2 of 3 have them"),
        ({"nodes": 2, "gpus_per_node": 3}, "cluster.nodes 2: 2 nodes with 3 CPUs are needed, and 0 of 3 have them"),
        ({"nodes": "1:2", "gpus_per_node": 2, "cpus_per_worker": 2}, "1 nodes with 4 CPUs are needed, and 0 of 3"),
    ],
)
def test_what_no_node_has_is_refused_at_once(cluster: Any, run_dir: Path, fields: dict[str, Any], text: str):
    with pytest.raises(UserError) as error:
        run(spec_of(cluster, **fields), run_dir)
    assert text in str(error.value)


def test_a_node_with_other_code_is_named(cluster: Any, run_dir: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(workers, "versions", lambda: {"python": "3.11.0", "torch": "2.0", "code": "0123"})
    with pytest.raises(UserError, match=r"^node .*: runs python .* \(here 3\.11\.0\), torch .* code .*\(here 0123\)"):
        run(spec_of(cluster, nodes=2), run_dir)


def in_background(run_it: Callable[[], None]) -> tuple[threading.Thread, list[BaseException]]:
    """The nodes of this cluster can only be started from the main thread."""
    errors: list[BaseException] = []

    def call() -> None:
        try:
            run_it()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    return thread, errors


def wait_for(condition: Callable[[], Any], thread: threading.Thread) -> None:
    """Until something has happened, while the job goes on."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert thread.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_node_that_is_killed_shrinks_an_elastic_job_and_grows_it_when_it_is_back(
    cluster: Any, run_dir: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(workers, "ROOM_FOR", 1.0)
    spec = spec_of(cluster, nodes="1:2", gpus_per_node=2)
    (run_dir / "plan.json").write_text(json.dumps({"seconds": 0.2, "steps": 100_000}))
    thread, errors = in_background(lambda: workers.run_workers(toy.count, spec, run_dir))
    wait_for(lambda: (run_dir / "steps.jsonl").exists() and len(steps(run_dir)) >= 2, thread)
    cluster.remove_node(cluster.own.pop(), allow_graceful=False)
    wait_for(lambda: steps(run_dir)[-1][1] == 2, thread)
    cluster.own.append(new_node(cluster, num_cpus=2))
    wait_for(lambda: steps(run_dir)[-1][1] == 4, thread)
    write_bytes(run_dir / "last", str(steps(run_dir)[-1][0] + 20).encode())
    thread.join(PATIENCE)
    assert errors == []
    worlds = [world for _, world, _ in steps(run_dir)]
    assert [step for step, *_ in steps(run_dir)] == list(range(len(worlds))), "every step once"
    assert [world for world, _ in itertools.groupby(worlds)] == [4, 2, 4]
    assert any("is gone at step" in line for line in said(run_dir))


def test_workers_leave_a_node_that_is_about_to_be_taken_away(cluster: Any, run_dir: Path):
    """They stop behind one step, which is no failure, and go on elsewhere: no step is run again."""
    from ray._raylet import GcsClient
    from ray.core.generated.autoscaler_pb2 import DrainNodeReason

    spec = spec_of(cluster, nodes="1:2", gpus_per_node=2, max_failures=0)
    (run_dir / "plan.json").write_text(json.dumps({"seconds": 0.2, "steps": 100_000}))
    thread, errors = in_background(lambda: workers.run_workers(toy.count, spec, run_dir))
    wait_for(lambda: (run_dir / "steps.jsonl").exists() and len(steps(run_dir)) >= 2, thread)
    node = cluster.own.pop()
    reason = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    until = int(1000 * (time.time() + PATIENCE))
    assert GcsClient(address=cluster.address).drain_node(node.node_id, reason, "a spot machine", until)[0]
    wait_for(lambda: steps(run_dir)[-1][1] == 2, thread)
    write_bytes(run_dir / "last", str(steps(run_dir)[-1][0] + 5).encode())
    thread.join(PATIENCE)
    cluster.remove_node(node)
    cluster.own.append(new_node(cluster, num_cpus=2))
    assert errors == []
    found = steps(run_dir)
    assert [step for step, *_ in found] == list(range(len(found))), "every step once"
    assert [world for world, _ in itertools.groupby(world for _, world, _ in found)] == [4, 2]
    assert "is about to be taken away" in json.loads(found[-1][2])["cause"]
    assert said(run_dir) == []


def test_a_node_that_stays_away_ends_the_job_within_its_wait(cluster: Any, run_dir: Path):
    spec = spec_of(cluster, nodes=2, gpus_per_node=2, wait=12)
    (run_dir / "plan.json").write_text(json.dumps({"seconds": 0.5}))
    thread, errors = in_background(lambda: workers.run_workers(toy.count, spec, run_dir))
    wait_for(lambda: (run_dir / "steps.jsonl").exists(), thread)
    cluster.remove_node(cluster.own.pop(), allow_graceful=False)
    thread.join(PATIENCE)
    cluster.own.append(new_node(cluster, num_cpus=2))
    [error] = errors
    assert isinstance(error, TransientError)
    assert str(error).startswith("waited 12 s for 2 nodes with 2 CPUs; there are: ")
    assert any(line.startswith("waiting for 2 nodes with 2 CPUs: ") for line in said(run_dir))


def test_workers_end_with_their_agent(cluster: Any, run_dir: Path):
    """The process that looks after a node's workers is killed: they go with it, and all are started again."""
    import psutil

    spec = spec_of(cluster, nodes=2)
    (run_dir / "plan.json").write_text(json.dumps({"seconds": 0.5}))
    thread, errors = in_background(lambda: workers.run_workers(toy.count, spec, run_dir))
    wait_for(lambda: (run_dir / "steps.jsonl").exists(), thread)
    worker = psutil.Process(int((run_dir / "pid-1").read_text()))
    agent = worker.parent().parent()  # the nursery is between them
    os.kill(agent.pid, signal.SIGKILL)
    psutil.wait_procs([worker], timeout=PATIENCE)
    thread.join(PATIENCE)
    assert errors == []
    assert [step for step, *_ in steps(run_dir)] == list(range(toy.STEPS))
    [line] = said(run_dir)
    assert line.startswith("the process that looks after workers on ")
