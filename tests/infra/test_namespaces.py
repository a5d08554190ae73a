"""A training on a head and three nodes that have addresses, host names and process ids of their own (network
namespaces), and what happens to machines: it goes on, waits, or ends in one line; no step is lost or doubled."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rwkvctl.base import files
from rwkvctl.data.convert.prepare import prepare
from rwkvctl.data.convert.synth import phantom
from rwkvctl.runs import journal

from ..namespaces import Machine, argument, network, processes
from ..rwkv_jobs.conftest import history, mlflow_history, mlflow_runs, weights
from .stand_ins import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.ray]
HOSTS = [f"10.79.0.{number}" for number in (10, 11, 12, 13)]
SMALL = ["data.image_size=32", "data.workers=0", "train.log_steps=1", "train.checkpoint_steps=5"]
SMALL += ["train.batch_size=6", "train.validate_every=0"]  # six images for two workers as for three


@dataclass
class Lab:
    """A cluster with a folder that all machines share."""

    head: Machine
    nodes: list[Machine]
    shards: Path
    home: Path

    def finetune(self, name: str, *words: str) -> list[str]:
        command = ["finetune", "binary", "--variant", "xt", "--data", str(self.shards), "--name", name]
        return [*command, *(word for field in SMALL for word in ("--set", field)), *words]

    def on_cluster(self, name: str, nodes: str, *words: str) -> list[str]:
        where = ["--address", f"{HOSTS[0]}:6379", "--nodes", nodes, "--gpus-per-node", "0"]
        return self.finetune(name, *where, *words)

    def start(self, log: str, *words: str) -> subprocess.Popen[bytes]:
        """A command of a user who sits at the head."""
        return self.head.start(sys.executable, "-m", "rwkvctl.cli.app", *words, log=log)

    def run(self, log: str, *words: str) -> int:
        return self.start(log, *words).wait()

    def wait_until_up(self, nodes: int = len(HOSTS)) -> None:
        """Until the cluster has so many nodes."""
        asking = self.head.start(sys.executable, "-c", ASK, f"{HOSTS[0]}:6379", str(nodes), log="asked")
        wait_for(lambda: asking.poll() is not None, "cluster of all nodes", said=lambda: self.head.said("asked"))
        assert asking.returncode == 0, self.head.said("asked")


ASK = """
import sys, time
from rwkvctl.base.errors import UserError
from rwkvctl.launch.address import Cluster
while True:
    try:
        if sum(node.state == 0 for node in Cluster(sys.argv[1]).nodes) == int(sys.argv[2]):
            break
    except UserError as error:
        print(error, flush=True)
    time.sleep(0.5)
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, migrated_database: Path) -> Iterator[Lab]:
    folder, temporary = tmp_path_factory.mktemp("lab"), Path(f"/tmp/ns{os.getpid()}")  # sockets need a short path
    home, token = folder / "home", folder / "token"
    home.mkdir()
    shutil.copy(migrated_database, home / "mlflow.db")
    token.write_text("ab" * 32)
    token.chmod(0o600)
    prepare("folder", [phantom.write_polyps(folder / "raw", n=20, size=40)], folder / "shards", seeds=[41])
    own = {"RWKVCTL_HOME": str(home), "TMPDIR": str(temporary), "OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0"}
    own |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    temporary.mkdir()
    names = ["head", "node1", "node2", "node3"]
    try:
        # Not beside another test that starts Ray, which has 30 seconds to start.
        with files.locked(tmp_path_factory.getbasetemp().parent / "ray"), network(HOSTS) as spaces:
            head, *nodes = machines = [
                Machine(name, host, space, folder, temporary, own)
                for name, host, space in zip(names, HOSTS, spaces, strict=True)
            ]
            for machine in machines:
                machine.own_hosts(f"127.0.0.1 localhost\n127.0.1.1 {machine.name}\n")  # Debian's default
                machine.boot()
            made = Lab(head, nodes, folder / "shards", home)
            head.be_head()
            made.wait_until_up(1)
            for node in nodes:
                node.be_node(head)
            made.wait_until_up()
            yield made
            for machine in machines:
                machine.kill()
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


class Run:
    """A run that goes on: the command that a user has typed, what it says, and what lies in the run's folder."""

    def __init__(self, lab: Lab, name: str):
        self.lab, self.folder = lab, lab.home / "runs" / name
        self.name, self.process, self.log = name, None, ""

    def follow(self, log: str, *words: str) -> None:
        self.process: Any = self.lab.start(log, *words)
        self.log = log

    def said(self) -> str:
        return self.lab.head.said(self.log)

    def until(self, condition: Callable[[], Any], what: str) -> Any:
        """The condition's value as soon as it is true; the run must not end before."""

        def met() -> Any:
            value = condition()
            assert value or self.process.poll() is None, f"it ended with {self.process.poll()}: {self.said()}"
            return value

        return wait_for(met, what, said=self.said)

    def entries(self) -> list[dict[str, Any]]:
        path = self.folder / "journal.jsonl"
        return journal.read(path)[0] if path.exists() else []

    def steps(self) -> list[int]:
        return [e["step"] for e in self.entries() if e["kind"] == "metrics" and "train/loss" in e["values"]]

    def goes_on(self, more: int = 3) -> None:
        """Until there are so many steps more than now."""
        last = max(self.steps(), default=0)
        self.until(lambda: max(self.steps(), default=0) >= last + more, f"step {last + more}")

    def restarts(self) -> list[str]:
        return [e["text"] for e in self.entries() if str(e.get("text", "")).startswith("restart ")]

    def recovers(self, since: float, workers: int, fault: str) -> None:
        """Until it has been started again on so many workers, and has made a step; says how long it took."""
        count = len(self.restarts())
        self.until(lambda: len(self.restarts()) > count, "restart")
        assert f" on {workers} workers " in self.restarts()[-1], self.said()
        self.goes_on(1)
        print(f"{fault}: {time.monotonic() - since:.0f} s to the next step (load {os.getloadavg()[0]:.0f})")

    def every_step_is_there_once(self) -> None:
        steps = self.steps()
        assert steps == list(range(1, len(steps) + 1))
        [found] = [run for run in mlflow_runs(self.lab.home) if run.info.run_name == self.name]
        assert sorted(mlflow_history(self.lab.home, found)) == sorted(history(self.folder)), "MLflow has the same"


def test_three_machines_compute_what_one_does(lab: Lab):
    """Bit for bit, while every host name leads to a loopback address."""
    assert "127.0.1.1" in subprocess.check_output(lab.nodes[0].command("getent", "ahostsv4", "node1"), text=True)
    few = ("--set", "train.epochs=2")
    assert lab.run("three", *lab.on_cluster("three", "3", *few)) == 0, lab.head.said("three")
    job = ["-m", "rwkv_jobs.finetune", "binary"]
    words = [*SMALL, "train.epochs=2", "model.name=rwkv_unet_xt", f"data.path={lab.shards}", "name=one"]
    words += ["cluster.launcher=process", "cluster.workers=3"]
    sets = [word for field in words for word in ("--set", field)]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3"]
    done = lab.head.start(*torchrun, *job, *sets, log="one").wait()
    assert done == 0, lab.head.said("one")
    three, one = (lab.home / "runs" / name for name in ("three", "one"))
    assert weights(three) == weights(one)
    losses = [[row for row in history(folder) if row[0] == "train/loss"] for folder in (three, one)]
    assert losses[0] == losses[1]
    assert len(losses[0]) > 3


def test_a_node_with_a_storage_of_its_own_is_named(lab: Lab, tmp_path: Path):
    storage = tmp_path / "runs"
    storage.mkdir()
    subprocess.run(lab.nodes[2].command("mount", "-t", "tmpfs", "own", str(storage)), check=True)
    try:
        code = lab.run("own", *lab.on_cluster("own", "3", "--set", "train.epochs=2", "--set", f"storage={storage}"))
    finally:
        subprocess.run(lab.nodes[2].command("umount", str(storage)), check=True)
    assert code == 2
    [line] = [line for line in lab.head.said("own").splitlines() if line.startswith("error: ")]
    assert re.match(rf"error: node node3 \({HOSTS[3]}\): does not see .*; set storage to a folder that all nodes", line)
    assert len(line) < 400
    assert list((storage / "own").glob("checkpoints/*")) == [], "nothing was trained"


def test_a_training_survives_what_happens_to_machines(lab: Lab):
    """A node dies and comes back, a node is cut off, the head ends: in one run."""
    run = Run(lab, "long")
    node1, _, node3 = lab.nodes
    run.follow("long", *lab.on_cluster("long", "2:3", "--set", "train.epochs=10000"))
    run.until(lambda: max(run.steps(), default=0) >= 4, "step 4")

    died = time.monotonic()
    node3.kill()
    run.recovers(died, 2, "node killed")
    assert f"node node3 ({HOSTS[3]}) is gone" in run.restarts()[-1]
    back = time.monotonic()
    node3.boot()
    node3.be_node(lab.head)
    run.recovers(back, 3, "node back")
    assert "(there is room for more nodes)" in run.restarts()[-1]

    cut = time.monotonic()
    node1.unplug()  # it has rank 0, which holds the run's lease and goes on touching it
    run.recovers(cut, 2, "node cut off")
    assert f"node node1 ({HOSTS[1]}) has not answered for 20 s" in run.restarts()[-1]
    run.until(lambda: not workers_on(node1), "end of the workers that are cut off")
    print(f"workers of the node that is cut off ended after {time.monotonic() - cut:.0f} s")
    node1.plug_in()
    run.goes_on()

    ended = time.monotonic()
    lab.head.kill_process("gcs_server")  # its unit starts it again: an empty cluster
    assert run.process.wait() == 75, run.said()
    print(f"head killed: the job ended after {time.monotonic() - ended:.0f} s")
    *before, last = run.said().splitlines()
    assert re.match(r"failed: the head of the cluster \(10\.79\.0\.10:6379\) has .*; continue with: rwkvctl ", last)
    ours = r"run |step |restart |node |waiting "
    of_ray = r"\x1b\[33m\(raylet\)\x1b\[0m A worker died "  # the one that looked after the workers that were cut off
    assert [line for line in before if not re.match(f"{ours}|{of_ray}", line)] == []

    lab.wait_until_up()
    resumed = time.monotonic()
    at = max(run.steps())
    run.follow("resumed", "run", "resume", "long")
    run.until(lambda: max(run.steps()) > at, "step after the resume")
    print(f"resumed: {time.monotonic() - resumed:.0f} s to the next step (load {os.getloadavg()[0]:.0f})")
    assert lab.run("stop", "run", "stop", "long") == 0, lab.head.said("stop")
    assert run.process.wait() == 3, run.said()
    run.every_step_is_there_once()


def workers_on(machine: Machine) -> list[int]:
    """Processes that train there, and those that they are forked from."""
    return [pid for pid in processes(machine.namespace) if "rwkvctl.launch.nursery" in argument(pid, 3)]
