"""A process that has imported what a job needs and forks workers from itself, in milliseconds instead of seconds.

`python -P -m rwkvctl.launch.nursery SOCKET MODULE...` listens on a Unix socket before it imports the modules. Each
client sends lines of JSON and is answered in lines of JSON:

    {"do": "start", "key": "0", "target": "module:function", "arguments": {...}, "environment": {...}, "log": PATH}
    {"do": "signal", "key": "0", "number": 15}

    {"key": "0", "pid": 4711}
    {"key": "0", "exit": 0, "outcome": null}            ended; below 0 it is the signal that killed it

A client's processes are killed, with all that they have started, when its connection closes; the nursery ends when its
standard input does, or the pipe that it was given. So nothing outlives the process that asked for it.

A job's own process has imported what its workers need, and forks itself into a nursery before it does anything else.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import multiprocessing
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from rwkvctl.base.fork_server import fork_server_from_here
from rwkvctl.base.processes import STOP_SIGNALS, signal_group, unblock_stop_signals

FORK = multiprocessing.get_context("fork")
FOR_FORKS = {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
"""CUDA must not be touched before a fork: whether there is a GPU is asked of its driver's library instead."""
ENDS_WITHIN = 1.0
"""Seconds that a nursery has to end its children when it is no longer needed."""


@dataclass
class Child:
    """A process that was forked for a client, and the end of the pipe that its outcome comes through."""

    process: Any
    outcome: Connection

    def kill(self) -> None:
        """End it with all that it has started; it may be too young yet to lead a group of processes."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, signal.SIGKILL)
        signal_group(self.process.pid, signal.SIGKILL)

    def end(self) -> dict[str, Any]:
        """What is said of it when it has ended."""
        self.process.join()
        outcome = None
        with contextlib.suppress(EOFError, OSError):
            outcome = self.outcome.recv() if self.outcome.poll() else None
        self.outcome.close()
        signal_group(self.process.pid, signal.SIGKILL)  # its loader processes
        return {"exit": self.process.exitcode, "outcome": outcome}


@dataclass
class Client:
    """One connection, with its children by their keys."""

    connection: socket.socket
    received: bytes = b""
    children: dict[str, Child] = field(default_factory=dict)

    def tell(self, **message: Any) -> None:
        with contextlib.suppress(OSError):  # of a client that is gone; its connection says so next
            self.connection.sendall(json.dumps(message).encode() + b"\n")


class Nursery:
    """Answers its clients, one event after the other in one thread: a process with threads must not fork."""

    def __init__(self, server: socket.socket, lifeline: int):
        self.events = selectors.DefaultSelector()
        self.server, self.lifeline = server, lifeline
        self.clients: dict[socket.socket, Client] = {}
        self.events.register(server, selectors.EVENT_READ, self.accept)
        self.events.register(lifeline, selectors.EVENT_READ, self.leave)

    def serve(self) -> None:
        while True:
            for key, _ in self.events.select():
                key.data()

    def accept(self) -> None:
        connection, _ = self.server.accept()
        client = Client(connection)
        self.clients[connection] = client
        self.events.register(connection, selectors.EVENT_READ, lambda: self.hear(client))

    def hear(self, client: Client) -> None:
        """Lines of a client, or the end of its connection."""
        try:
            data = client.connection.recv(1 << 20)
        except OSError:
            data = b""
        if not data:
            self.forget(client)
            return
        *lines, client.received = (client.received + data).split(b"\n")
        for line in lines:
            request = json.loads(line)
            if request.pop("do") == "start":
                self.start(client, **request)
            elif (child := client.children.get(request["key"])) is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child.process.pid, request["number"])

    def start(self, client: Client, key: str, **what: Any) -> None:
        mine, its = FORK.Pipe(duplex=False)
        inherited = [*self.clients, self.server]
        process = FORK.Process(target=be_worker, args=(its, inherited), kwargs=what)
        process.start()
        its.close()
        child = client.children[key] = Child(process, mine)
        client.tell(key=key, pid=process.pid)
        self.events.register(process.sentinel, selectors.EVENT_READ, lambda: self.bury(client, key, child))

    def bury(self, client: Client, key: str, child: Child) -> None:
        self.events.unregister(child.process.sentinel)
        client.children.pop(key, None)
        client.tell(key=key, **child.end())

    def forget(self, client: Client) -> None:
        self.events.unregister(client.connection)
        self.clients.pop(client.connection, None)
        client.connection.close()
        for child in client.children.values():
            child.kill()

    def leave(self) -> None:
        """End, with all children, when whoever started this process is gone."""
        if not os.read(self.lifeline, 1 << 16):
            for client in list(self.clients.values()):
                self.forget(client)
            os._exit(0)


def be_worker(
    outcome: Connection,
    inherited: list[socket.socket],
    target: str,
    arguments: dict[str, Any],
    environment: dict[str, str],
    log: str | None,
) -> None:
    """What a forked process does: become a session of its own, and call the target."""
    os.setsid()
    for connection in inherited:
        connection.close()
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_DFL if number != signal.SIGINT else signal.default_int_handler)
    unblock_stop_signals()
    os.environ.update(environment)
    if log is not None:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.close(descriptor)
    fork_server_from_here()
    threading.Thread(target=die_with, args=(multiprocessing.parent_process(),), daemon=True).start()
    module, name = target.split(":")
    outcome.send(getattr(importlib.import_module(module), name)(**arguments))


def die_with(parent: Any) -> None:
    parent.join()
    os._exit(1)


class Nurse:
    """A client's end of a nursery, started here if there is none yet.

    Args:
        modules: what the nursery imports.
        address: path of the socket of a nursery that runs already.
    """

    def __init__(self, modules: list[str], address: str | None = None):
        self.process: subprocess.Popen[bytes] | None = None
        self.address = address or str(Path(tempfile.mkdtemp(prefix="rwkvctl-")) / "nursery")
        if address is None:
            command = [sys.executable, "-P", "-m", "rwkvctl.launch.nursery", self.address, *modules]
            environment = os.environ | FOR_FORKS
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True, env=environment)
        self.connection: socket.socket | None = None
        self.received = b""

    def connect(self) -> socket.socket:
        """The connection; waits until a nursery that was started here listens, which is before it imports anything.

        Raises:
            ConnectionError: the nursery is gone.
        """
        while self.connection is None:
            if self.process is not None and self.process.poll() is not None:
                raise ConnectionError(f"the process that starts workers ended with code {self.process.returncode}")
            connection = socket.socket(socket.AF_UNIX)
            try:
                connection.connect(self.address)
                self.connection = connection
            except (FileNotFoundError, ConnectionRefusedError):
                connection.close()
                if self.process is None:  # one that was there already
                    raise ConnectionError("the process that starts workers is gone") from None
                time.sleep(0.02)
        return self.connection

    def start(
        self, key: str, target: str, arguments: dict[str, Any], environment: dict[str, str], log: str | None = None
    ) -> None:
        """Have `module:function` called with these arguments in a new process."""
        self.send(do="start", key=key, target=target, arguments=arguments, environment=environment, log=log)

    def signal(self, key: str, number: int) -> None:
        self.send(do="signal", key=key, number=number)

    def send(self, **request: Any) -> None:
        self.connect().sendall(json.dumps(request).encode() + b"\n")

    def messages(self, timeout: float | None) -> list[dict[str, Any]]:
        """What the nursery has said, after at most `timeout` seconds of waiting.

        Raises:
            ConnectionError: the nursery is gone.
        """
        connection = self.connect()
        connection.settimeout(timeout)
        try:
            data = connection.recv(1 << 20)
        except (TimeoutError, BlockingIOError):
            return []
        if not data:
            raise ConnectionError("the process that starts workers is gone")
        *lines, self.received = (self.received + data).split(b"\n")
        return [json.loads(line) for line in lines]

    def close(self) -> None:
        """Kill what was started through this connection; end the nursery if it was started here, even while it is
        importing."""
        if self.connection is not None:
            self.connection.close()
        if self.process is not None:
            assert self.process.stdin is not None
            self.process.stdin.close()
            try:
                self.process.wait(ENDS_WITHIN)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            remove_socket(self.address)


class Twin:
    """A nursery that this process has forked from itself, before it had threads."""

    def __init__(self) -> None:
        self.address = str(Path(tempfile.mkdtemp(prefix="rwkvctl-")) / "nursery")
        server = listening(self.address)
        lifeline, self.pipe = os.pipe()
        self.process = FORK.Process(target=serve_twin, args=(server, lifeline, self.pipe))
        self.process.start()
        server.close()
        os.close(lifeline)

    def close(self) -> None:
        os.close(self.pipe)
        self.process.join(ENDS_WITHIN)
        self.process.kill()
        self.process.join()
        remove_socket(self.address)


def serve_twin(server: socket.socket, lifeline: int, pipe: int) -> None:
    os.setsid()
    os.close(pipe)
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    unblock_stop_signals()
    os.environ |= FOR_FORKS
    Nursery(server, lifeline).serve()


_twin: Twin | None = None


@contextlib.contextmanager
def twin() -> Iterator[None]:
    """Have this process forked into a nursery, which workers of the block's job are forked from."""
    global _twin
    _twin = Twin()
    try:
        yield
    finally:
        _twin.close()
        _twin = None


def twin_address() -> str | None:
    """The socket of the nursery that `twin` has started, if it has and it lives."""
    return None if _twin is None or not _twin.process.is_alive() else _twin.address


def listening(address: str) -> socket.socket:
    """A Unix socket that only this user's processes can connect to."""
    server = socket.socket(socket.AF_UNIX)
    server.bind(address)
    Path(address).chmod(0o600)
    server.listen()
    return server


def remove_socket(address: str) -> None:
    Path(address).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        Path(address).parent.rmdir()


def main() -> None:
    address, *modules = sys.argv[1:]
    server = listening(address)
    for name in modules:
        importlib.import_module(name)
    Nursery(server, sys.stdin.fileno()).serve()


if __name__ == "__main__":
    main()
