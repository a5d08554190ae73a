"""Whether a cluster can be reached at an address, and how: known within seconds, before anything is made of a run."""

from __future__ import annotations

import socket
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any
from urllib.parse import urlsplit

from rwkvctl.base.errors import UserError
from rwkvctl.launch import token
from rwkvctl.launch.job_server import JobServer, Unreachable, why

TIMEOUT = 4.0
"""Seconds for each of the two steps, connection and answer."""


def is_job_server(address: str | None) -> bool:
    """Whether jobs go through the job server at this address; with any other, or none, the driver runs here."""
    return address is not None and address.startswith(("http://", "https://"))


def reach(address: str) -> str:
    """The address by which a job of this machine gets to the cluster: as given, or that of the cluster's job server
    where this machine is none of its nodes, whose driver could not take part.

    UserError, in one line, where no cluster answers, the token is wrong, or another Ray runs there.
    """
    if is_job_server(address):
        note_version(address, check_job_server(address, address))
        return address
    if address == "auto":
        return address
    cluster = Cluster(address)
    if cluster.has_this_machine():
        refuse_version(address, cluster.version)
        return address
    server = cluster.job_server()
    print(
        f"note: this machine is no node of the cluster at {address}; the job goes through its job server {server}",
        file=sys.stderr,
    )
    note_version(server, cluster.version)
    return server


def check_node(address: str) -> None:
    """UserError unless this machine is a node of the cluster at HOST:PORT, whose driver can run here."""
    cluster = Cluster(address)
    if not cluster.has_this_machine():
        raise UserError(
            f"cluster.address {address}: this machine is no node of that cluster; give the address of its job server: "
            f"{cluster.job_server()}"
        )
    refuse_version(address, cluster.version)


def check_job_server(address: str, given: str) -> str:
    """Ray's version on the cluster."""
    try:
        return JobServer(address, TIMEOUT).version()
    except Unreachable as error:
        reason = str(error).removeprefix(f"{address.rstrip('/')}: ")
        raise UserError(
            f"cluster.address {given}: no Ray job server at this address ({reason}); correct it, or start the cluster"
        ) from None


def own_version() -> str | None:
    """Ray's version here, without importing it."""
    try:
        return version("ray")
    except PackageNotFoundError:
        return None


def note_version(address: str, theirs: str) -> None:
    """A job that goes through a job server runs with the cluster's Ray: another one here is only worth a line."""
    if (ours := own_version()) != theirs:
        print(f"note: the cluster at {address} runs Ray {theirs}, this machine has {ours}", file=sys.stderr)


def refuse_version(address: str, theirs: str) -> None:
    """A driver and its cluster must have the same Ray."""
    if (ours := own_version()) != theirs:
        raise UserError(
            f"cluster.address {address}: the cluster runs Ray {theirs} and this machine {ours}; install ray=={theirs} "
            "here, or give the address of the job server, http://HOST:8265"
        )


class Cluster:
    """A cluster by the address of its head's GCS, asked over plain gRPC: `ray.init` would wait for minutes, and end the
    process where it finds no node."""

    def __init__(self, address: str):
        self.address = address
        connect(address)
        import grpc
        from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

        messages: Any = gcs_service_pb2
        services: Any = gcs_service_pb2_grpc
        self.errors = grpc
        with grpc.insecure_channel(address, [("grpc.enable_http_proxy", 0)]) as channel:
            nodes = services.NodeInfoGcsServiceStub(channel)
            self.version: str = self.ask(nodes.CheckAlive, messages.CheckAliveRequest()).ray_version
            self.nodes = self.ask(nodes.GetAllNodeInfo, messages.GetAllNodeInfoRequest()).node_info_list
            store = services.InternalKVGcsServiceStub(channel)
            wanted = messages.InternalKVGetRequest(key=b"dashboard", namespace=b"dashboard")
            self.dashboard: str = self.ask(store.InternalKVGet, wanted).value.decode()

    def ask(self, call: Any, request: Any) -> Any:
        metadata = [(name.lower(), value) for name, value in token.headers().items()]
        try:
            return call(request, timeout=TIMEOUT, metadata=metadata)
        except self.errors.RpcError as error:
            raise UserError(self.explain(error)) from None

    def explain(self, error: Any) -> str:
        code = self.errors.StatusCode
        if error.code() in (code.UNAUTHENTICATED, code.PERMISSION_DENIED):
            return f"cluster.address {self.address}: the cluster {token.advice()}"
        if error.code() == code.DEADLINE_EXCEEDED:
            return f"cluster.address {self.address}: does not answer in time; look at the cluster's head, or try later"
        if is_http(self.address):
            return f"cluster.address {self.address}: is a job server; give it as http://{self.address}"
        return (
            f"cluster.address {self.address}: something answers there that is no Ray cluster; give HOST:6379 of its "
            "head, or http://HOST:8265 of its job server"
        )

    def has_this_machine(self) -> bool:
        """Whether a living node has an address of this machine, and its socket can be connected to. A socket that
        another container can merely see would leave a driver waiting, with the cluster's CPUs in its hands."""
        own = own_addresses()
        return any(
            node.state == 0 and node.node_manager_address in own and answers(node.raylet_socket_name)
            for node in self.nodes
        )

    def job_server(self) -> str:
        """The job server's address, as far as it answers from here."""
        host, _, port = self.dashboard.rpartition(":")
        hosts = [host, split(self.address)[0]] if host in ("127.0.0.1", "localhost", "0.0.0.0", "") else [host]
        for found in hosts if port else ():
            try:
                JobServer(f"http://{found}:{port}", TIMEOUT / 2).version()
                return f"http://{found}:{port}"
            except Unreachable:
                continue
        where = f"at {self.dashboard} does not answer from here" if self.dashboard else "is not running"
        raise UserError(
            f"cluster.address {self.address}: this machine is no node of that cluster, and its job server {where}; "
            "start the head with --dashboard-host 0.0.0.0 and give http://HOST:8265"
        )


def connect(address: str) -> None:
    """UserError where nobody listens."""
    host, port = split(address)
    try:
        socket.create_connection((host, port), TIMEOUT).close()
    except OSError as error:
        raise UserError(
            f"cluster.address {address}: no Ray cluster at this address ({why(error)}); correct it, or start the "
            "cluster with: ray start --head"
        ) from None


def split(address: str) -> tuple[str, int]:
    """Host and port of HOST:PORT; an IPv6 host stands in brackets."""
    found = urlsplit(f"//{address}")
    return found.hostname or "", found.port or 0


def is_http(address: str) -> bool:
    """Whether a job server answers at HOST:PORT, with or without the right token."""
    try:
        JobServer(f"http://{address}", TIMEOUT / 2).version()
    except Unreachable:
        return False
    except UserError:
        return True
    return True


def own_addresses() -> set[str]:
    """The addresses of this machine's interfaces."""
    import psutil

    return {found.address.partition("%")[0] for each in psutil.net_if_addrs().values() for found in each}


def answers(socket_path: str) -> bool:
    """Whether a process listens on a Unix socket."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(TIMEOUT)
        try:
            client.connect(socket_path)
        except OSError:
            return False
    return True
