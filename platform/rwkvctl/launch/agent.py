"""Starts the workers of one node, looks after them, and ends them: in the job's own process, or as an actor on every
node of a cluster."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import shutil
import signal
import socket
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rwkvctl.base import identity
from rwkvctl.base.errors import UserError, explain
from rwkvctl.base.lineage import code_identity
from rwkvctl.launch import heartbeat
from rwkvctl.launch.nursery import Nurse
from rwkvctl.launch.worker_process import STACKS
from rwkvctl.runs import mirror

DRIVER_LOOKED_AT_EVERY = 0.5
SILENCE = 60.0
"""Seconds without a question from the driver after which its workers end: it is gone, or this node is cut off."""
SAME = ("python", "torch", "code")
"""What all nodes must have in common; another build rounds differently, other code computes something else."""

DEVICES = ("CUDA_VISIBLE_DEVICES",)
"""What Ray has given to this node's share of the job."""


@dataclass(frozen=True)
class WorkerState:
    """What is known of one worker. `exit` is its exit code once it has ended, below 0 the signal that killed it."""

    rank: int
    pid: int | None
    exit: int | None
    outcome: dict[str, str] | None
    beat: heartbeat.Beat | None
    stopped: bool
    """Whether the process is suspended (SIGSTOP, a debugger)."""
    log: str
    """The last lines that it wrote, once it has ended."""


class Agent:
    """The workers of one node.

    Args:
        modules: what workers need, imported once for all of them.
        nursery: socket of a nursery that has imported them already.
    """

    def __init__(self, modules: list[str], nursery: str | None = None):
        self.nurse = Nurse(modules, nursery)
        self.folder = Path(tempfile.mkdtemp(prefix="rwkvctl-"))
        self.workers: dict[str, dict[str, Any]] = {}
        self.lock = threading.Lock()

    def start(self, target: str, workers: list[dict[str, Any]]) -> None:
        """Start workers: `rank`, `arguments` and `environment` of each. If the nursery was killed, `poll` tells."""
        with self.lock:
            for worker in workers:
                rank = worker["rank"]
                files = {"beat": self.folder / f"beat-{rank}", "log": self.folder / f"rank-{rank}.log"}
                self.workers[str(rank)] = {"rank": rank, "pid": None, "exit": None, "outcome": None} | files
            with contextlib.suppress(ConnectionError):
                for worker in workers:
                    self.have_started(target, worker)

    def have_started(self, target: str, worker: dict[str, Any]) -> None:
        key = str(worker["rank"])
        own = self.workers[key]
        arguments = worker["arguments"] | {"beat": str(own["beat"])}
        environment = worker["environment"] | {k: os.environ[k] for k in DEVICES if k in os.environ}
        self.nurse.start(key, target, arguments, environment, str(own["log"]))

    def poll(self) -> list[WorkerState]:
        """How the workers are."""
        with self.lock:
            self.listen(0.0)
            return [self.state(worker) for worker in self.workers.values()]

    def listen(self, timeout: float) -> None:
        try:
            messages = self.nurse.messages(timeout)
        except ConnectionError:  # the nursery was killed, and its children went with it
            for worker in self.workers.values():
                worker["exit"] = -signal.SIGKILL if worker["exit"] is None else worker["exit"]
            return
        for message in messages:
            self.workers[message.pop("key")].update(message)

    def state(self, worker: dict[str, Any]) -> WorkerState:
        if "last" in worker:
            return worker["last"]
        ended = worker["exit"] is not None
        log = tail(worker["log"]) if ended else ""
        beat = heartbeat.read(worker["beat"])
        stopped = not ended and worker["pid"] is not None and is_suspended(worker["pid"])
        state = WorkerState(worker["rank"], worker["pid"], worker["exit"], worker["outcome"], beat, stopped, log)
        if ended:  # and looked at no more
            worker["last"] = state
        return state

    def signal(self, number: int) -> None:
        """Send a signal to every worker of this node that lives."""
        with self.lock, contextlib.suppress(ConnectionError):
            for key, worker in self.workers.items():
                if worker["exit"] is None:
                    self.nurse.signal(key, number)

    def stacks(self) -> dict[int, str]:
        """What every living worker is doing, thread by thread; of a suspended one, that it is."""
        with self.lock:
            living = [worker for worker in self.workers.values() if worker["exit"] is None and worker["pid"]]
        sizes = {worker["rank"]: size(worker["log"]) for worker in living}
        self.signal(STACKS)
        time.sleep(1.0)
        return {worker["rank"]: self.stack(worker, sizes[worker["rank"]]) for worker in living}

    def stack(self, worker: dict[str, Any], offset: int) -> str:
        if is_suspended(worker["pid"]):
            return f"process {worker['pid']} is suspended\n"
        return written_since(worker["log"], offset)

    def clear(self, address: str) -> int | None:
        """End all workers at once, for others to be started in their place; a port of the address where these can meet,
        or None if the nursery is gone, and this agent of no more use."""
        self.signal(signal.SIGKILL)
        while not self.all_ended():
            with self.lock:
                self.listen(0.1)
        with self.lock, contextlib.suppress(ConnectionError):
            self.workers.clear()
            for path in self.folder.iterdir():
                path.unlink()
            self.nurse.messages(0.0)
            return free_port(address)
        return None

    def stop(self, grace: float) -> None:
        """End all workers: by SIGTERM, and those that live after `grace` seconds by SIGKILL."""
        if grace:
            self.signal(signal.SIGTERM)
        deadline = time.monotonic() + grace
        while time.monotonic() < deadline and not self.all_ended():
            with self.lock:
                self.listen(0.1)
        self.nurse.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def all_ended(self) -> bool:
        return all(worker["exit"] is not None for worker in self.workers.values())


class NodeAgent(Agent):
    """Runs as a Ray actor that holds the node's share of CPUs and GPUs.

    Args:
        driver: machine, process id and start time of the driver, which is watched where it runs on this machine.
    """

    def __init__(self, modules: list[str], driver: dict[str, Any]):
        super().__init__(modules)
        self.asked = time.monotonic()
        threading.Thread(target=self.watch_driver, args=(driver,), daemon=True).start()

    def describe(self) -> dict[str, Any]:
        """Who this node is and what it runs."""
        import ray

        node = {"node": ray.get_runtime_context().get_node_id()}
        return node | about(ray.util.get_node_ip_address()) | versions()

    def sees(self, path: str, content: str) -> bool:
        """Whether this node reads from a file what the driver wrote into it, looking again for some seconds: network
        file systems show a new file late."""
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                if Path(path).read_text() == content:
                    return True
            except OSError:
                pass
            time.sleep(0.2)
        return False

    def opens(self, uri: str) -> str:
        """Why this node cannot work on a run of an object store; empty if it can."""
        try:
            mirror.opened(uri)
        except (UserError, OSError) as error:
            return explain(error) if isinstance(error, OSError) else str(error)
        return ""

    def poll(self) -> list[WorkerState]:
        """How the workers are, for a driver that is there."""
        self.asked = time.monotonic()
        return super().poll()

    def watch_driver(self, driver: dict[str, Any]) -> None:
        """End this process, and the workers with it, when the driver is gone."""
        while True:
            time.sleep(DRIVER_LOOKED_AT_EVERY)
            gone = identity.lives(driver) is False
            if gone or time.monotonic() - self.asked > SILENCE:
                os._exit(1)  # the nursery loses its standard input, or this connection, and kills the workers


def about(address: str) -> dict[str, Any]:
    """Who a node is to the others, and where its workers can meet."""
    return {
        "address": address,
        "host": socket.gethostname(),
        "interface": interface_of(address),
        "port": free_port(address),
    }


def versions() -> dict[str, str]:
    """What a node computes with."""
    return {
        "python": platform.python_version(),
        "torch": importlib.metadata.version("torch"),
        "code": code_identity()[:12],
    }


def interface_of(address: str) -> str | None:
    """The network interface that has an address; collectives between nodes must use the one that reaches the others,
    while a host's name often resolves to its loopback."""
    import psutil

    for name, addresses in psutil.net_if_addrs().items():
        if any(entry.address.partition("%")[0] == address for entry in addresses):
            return name
    return None


def free_port(address: str) -> int:
    """A port of this node that nobody uses."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


def is_suspended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "Tt"
    except OSError:
        return False


def size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def written_since(path: Path, offset: int) -> str:
    if not path.exists():
        return ""
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(1 << 20).decode(errors="replace")


def tail(path: Path, most: int = 4000) -> str:
    return written_since(path, max(0, size(path) - most))
