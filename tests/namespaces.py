"""Machines on one machine: network namespaces with an address each, and nodes of a Ray cluster in them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

RAY = Path(sys.executable).with_name("ray")


def ip(*words: str, check: bool = True) -> None:
    subprocess.run(["ip", *words], check=check, capture_output=True)


@contextmanager
def network(hosts: list[str]) -> Iterator[list[str]]:
    """A namespace for every address, on a bridge that stands in a namespace of its own; their names. Skips the test
    where there can't be any.

    The end of the cable of `NAME` is `BRIDGE/pN`: see `Machine.unplug`.
    """
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and iproute2")
    bridge, *nodes = made = [f"rwk{os.getpid()}{letter}" for letter in "bstuvwxyz"[: len(hosts) + 1]]
    try:
        for name in made:
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("-n", bridge, "link", "add", "br0", "type", "bridge")
        ip("-n", bridge, "link", "set", "br0", "up")
        for number, (node, host) in enumerate(zip(nodes, hosts, strict=True)):
            peer = f"p{number}"
            ip("link", "add", "eth0", "netns", node, "type", "veth", "peer", "name", peer, "netns", bridge)
            ip("-n", bridge, "link", "set", peer, "master", "br0", "up")
            ip("-n", node, "addr", "add", f"{host}/24", "dev", "eth0")
            ip("-n", node, "link", "set", "eth0", "up")
    except subprocess.CalledProcessError as error:
        for name in made:
            ip("netns", "del", name, check=False)
        pytest.skip(f"no network namespaces here: {error.stderr.decode().strip()}")
    try:
        yield nodes
    finally:
        for node in nodes:
            for pid in processes(node):
                with_signal(pid, signal.SIGKILL)
        for name in made:
            ip("netns", "del", name, check=False)


def processes(namespace: str) -> list[int]:
    """Ids of all processes in a network namespace."""
    done = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True, check=False)
    return [int(pid) for pid in done.stdout.split()]


def with_signal(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


BOOT = """
set -e
hostname "$1"
mount --bind "$2/tmp" "$3"
[ ! -e "$2/hosts" ] || mount --bind "$2/hosts" /etc/hosts
echo up
exec sleep infinity
"""
SUPERVISED = 'while :; do "$@"; sleep 5; done'
"""As the systemd units of infra/bare do: Ray is started again, however often it ends."""
PORTS = {
    "metrics-export": 7001,
    "runtime-env-agent": 7002,
    "dashboard-agent-grpc": 7003,
    "dashboard-agent-listen": 7004,
}
"""Ray waits 15 seconds for the agents to say which ports they have chosen, too short a time on a busy machine."""


class Machine:
    """One machine of a cluster: with an address, a host name, process ids and temporary files of its own.

    Args:
        temporary: the folder (its path must be short) where every machine sees files of its own.
    """

    def __init__(
        self, name: str, host: str, namespace: str, folder: Path, temporary: Path, environment: dict[str, str]
    ):
        self.name, self.host, self.namespace, self.temporary = name, host, namespace, temporary
        self.folder, self.environment = folder / name, environment
        (self.folder / "tmp").mkdir(parents=True)
        self.init: subprocess.Popen[str] | None = None
        self.started: list[subprocess.Popen[bytes]] = []

    def own_hosts(self, text: str) -> None:
        """What this machine has in /etc/hosts, from its next boot on."""
        (self.folder / "hosts").write_text(text)

    def boot(self) -> None:
        words = ["unshare", "--uts", "--pid", "--fork", "--mount-proc", "--kill-child"]
        words += ["sh", "-c", BOOT, "sh", self.name, str(self.folder), str(self.temporary)]
        self.init = subprocess.Popen(
            ["ip", "netns", "exec", self.namespace, *words], stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        assert self.init.stdout is not None
        assert self.init.stdout.readline() == "up\n"

    def command(self, *words: str) -> list[str]:
        """A command that runs on this machine."""
        [first] = [pid for pid in processes(self.namespace) if is_first(pid)]
        return ["nsenter", "--target", str(first), "--mount", "--uts", "--net", "--pid", "--", *words]

    def start(self, *words: str, log: str) -> subprocess.Popen[bytes]:
        """Start a command; what it says is in `log`."""
        with (self.folder / log).open("ab") as file:
            process = subprocess.Popen(
                self.command(*words),
                stdout=file,
                stderr=file,
                env=os.environ | self.environment,
                start_new_session=True,
            )
        self.started.append(process)
        return process

    def said(self, log: str) -> str:
        path = self.folder / log
        return path.read_text(errors="replace") if path.exists() else ""

    def be_head(self, *words: str) -> None:
        folder = str(self.temporary / "ray")
        words = ("--head", "--port", "6379", "--num-cpus", "0", "--temp-dir", folder, *words)
        self.join(*words, "--dashboard-host", self.host)

    def be_node(self, head: Machine, cpus: int = 1) -> None:
        self.join("--address", f"{head.host}:6379", "--num-cpus", str(cpus))

    def join(self, *words: str) -> None:
        own = ("--block", "--node-ip-address", self.host, "--disable-usage-stats")
        own += tuple(word for name, port in PORTS.items() for word in (f"--{name}-port", str(port)))
        self.start("sh", "-c", SUPERVISED, "sh", str(RAY), "start", *own, *words, log="ray.log")

    def kill(self) -> None:
        """All its processes at once, and its files of before; harmless where it has ended."""
        if self.init is None:
            return
        for pid in processes(self.namespace):
            if is_first(pid):
                os.kill(pid, signal.SIGKILL)  # the kernel ends every other process of its pid namespace
        self.init.wait()
        assert self.init.stdout is not None
        self.init.stdout.close()
        self.init = None
        for process in self.started:
            process.wait()
        self.started.clear()
        while processes(self.namespace):
            time.sleep(0.01)
        shutil.rmtree(self.folder / "tmp")
        (self.folder / "tmp").mkdir()

    def kill_process(self, program: str) -> None:
        """SIGKILL for what runs a program, such as gcs_server."""
        for pid in processes(self.namespace):
            if program in argument(pid, 0):
                with_signal(pid, signal.SIGKILL)

    def unplug(self) -> None:
        self.cable("down")

    def plug_in(self) -> None:
        self.cable("up")

    def cable(self, state: str) -> None:
        bridge, number = self.namespace[:-1] + "b", "stuvwxyz".index(self.namespace[-1])
        ip("-n", bridge, "link", "set", f"p{number}", state)


def argument(pid: int, number: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[number].decode()
    except (OSError, IndexError):
        return ""


def is_first(pid: int) -> bool:
    """Whether this process is the first of its pid namespace, which is not ours."""
    try:
        [ids] = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("NSpid:")]
    except (OSError, ValueError):
        return False
    return len(ids.split()) > 2 and ids.split()[-1] == "1"
