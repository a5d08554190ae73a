"""Which nodes of the connected cluster a job's workers go to, checked against each node before anything waits."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

from rwkvctl.base.errors import TransientError, UserError
from rwkvctl.base.processes import available_cpus
from rwkvctl.config.specs.parts import ClusterSpec
from rwkvctl.launch import head

TOLD_EVERY = 10.0
"""Seconds between two lines about what a job waits for."""
LOCAL = "127.0.0.1"
ANSWERS_WITHIN = 1.0
"""Seconds that a node's Ray daemon has to accept a connection."""


@dataclass(frozen=True)
class Node:
    """A living node: what it has in all, and what nobody uses at the moment."""

    id: str
    address: str
    port: int
    """Where its Ray daemon listens."""
    cpus: float
    gpus: float
    free_cpus: float
    free_gpus: float

    def __str__(self) -> str:
        gpus = f"{self.gpus:g} GPUs, " if self.gpus else ""
        return f"{self.address}: {gpus}{self.cpus:g} CPUs"

    def answers(self) -> bool:
        """Whether somebody listens there; Ray itself takes a dead node for alive until its health checks have failed,
        half a minute with its defaults."""
        try:
            socket.create_connection((self.address, self.port), ANSWERS_WITHIN).close()
        except OSError:
            return False
        return True


@dataclass(frozen=True)
class Place:
    """So many workers of a job on one node."""

    node: Node
    workers: int


@dataclass(frozen=True)
class Demand:
    """What a job asks for: `least` to `most` nodes of so many `workers`, or `total` workers wherever they fit."""

    least: int
    most: int
    workers: int
    total: int | None
    cpus: int
    gpus: int

    def fit(self, cpus: float, gpus: float) -> int:
        """How many workers so many CPUs and GPUs are enough for."""
        by_cpus = int(cpus // self.cpus)
        return min(by_cpus, int(gpus // self.gpus)) if self.gpus else by_cpus

    def among(self, nodes: list[Node], *, free: bool) -> list[Place]:
        """The places on these nodes, roomiest first, by what is free or by what they have in all; empty if they are
        not enough."""
        room = [
            (node, self.fit(node.free_cpus, node.free_gpus) if free else self.fit(node.cpus, node.gpus))
            for node in nodes
        ]
        room.sort(key=lambda pair: (-pair[1], pair[0].address))
        if self.total is None:
            fitting = [Place(node, self.workers) for node, workers in room if workers >= self.workers]
            return fitting[: self.most] if len(fitting) >= self.least else []
        places, left = [], self.total
        for node, workers in room:
            if left and workers:
                places.append(Place(node, min(left, workers)))
                left -= places[-1].workers
        return [] if left else places

    def __str__(self) -> str:
        gpus = f"{self.workers * self.gpus} GPUs and " if self.gpus else ""
        if self.total is None:
            return f"{self.least} nodes with {gpus}{self.workers * self.cpus} CPUs"
        gpus = f"{self.total * self.gpus} GPUs and " if self.gpus else ""
        return f"{gpus}{self.total * self.cpus} CPUs"


def demand_of(cluster: ClusterSpec, nodes: list[Node]) -> Demand:
    """What a spec means on these nodes: a worker a GPU where there are GPUs."""
    gpus = [int(node.gpus) for node in nodes if node.gpus >= 1]
    each = 1 if gpus else 0
    if cluster.nodes is None:
        return Demand(1, len(nodes), 0, cluster.workers or 1, cluster.cpus_per_worker, each)
    workers = cluster.gpus_per_node or min(gpus, default=1)
    if cluster.workers is not None:
        workers = cluster.workers // cluster.most_nodes
    return Demand(cluster.least_nodes, cluster.most_nodes, workers, None, cluster.cpus_per_worker, each)


def living_nodes(doubtful: set[str] | None = None) -> list[Node]:
    """The nodes of the connected cluster that take work, by address.

    Args:
        doubtful: ids of nodes that failed this job; one that answers is taken out of it, any other is left out here.
    """
    import ray
    from ray._private.state import available_resources_per_node  # nothing public says it node by node

    head.look()  # questions to a head that has been started anew can end this process
    free, leaving = available_resources_per_node(), draining_nodes()
    nodes = []
    for node in ray.nodes():
        if not node["Alive"] or node["NodeID"] in leaving:
            continue
        has, has_free = node["Resources"], free.get(node["NodeID"], {})
        counts = [float(kind.get(name, 0)) for kind in (has, has_free) for name in ("CPU", "GPU")]
        found = Node(node["NodeID"], node["NodeManagerAddress"], node["NodeManagerPort"], *counts)
        if doubtful is not None and found.id in doubtful:
            if not found.answers():
                continue
            doubtful.remove(found.id)
        nodes.append(found)
    return sorted(nodes, key=lambda node: node.address)


def draining_nodes() -> set[str]:
    """Ids of nodes that are about to be taken away: preempted, or told to shut down."""
    import ray

    try:
        answer = head.ask(ray.get_runtime_context().gcs_address, "NodeResourceInfo", "GetDrainingNodes")
    except ConnectionError:  # what that means is for the watch over the head to say
        return set()
    return {node.node_id.hex() for node in answer.draining_nodes}


def refuse_impossible(cluster: ClusterSpec, nodes: list[Node]) -> None:
    """UserError for what these nodes could not do if they were all free."""
    demand = demand_of(cluster, nodes)
    if demand.among(nodes, free=False):
        return
    listed = "; ".join(str(node) for node in nodes[:4]) + (f"; and {len(nodes) - 4} more" if len(nodes) > 4 else "")
    if demand.total is not None:
        raise UserError(
            f"cluster.workers {demand.total} x cluster.cpus_per_worker {demand.cpus} needs {demand}; the cluster has "
            f"{listed}: ask for fewer"
        )
    fitting = sum(demand.fit(node.cpus, node.gpus) >= demand.workers for node in nodes)
    raise UserError(
        f"cluster.nodes {cluster.nodes}: {demand} are needed, and {fitting} of {len(nodes)} have them ({listed}): ask "
        "for fewer, or start more nodes"
    )


def find_places(cluster: ClusterSpec, doubtful: set[str], *, first: bool, say: Callable[[str], None]) -> list[Place]:
    """Where the workers go; waits for nodes that are busy or gone, and says so every ten seconds.

    Args:
        doubtful: as in `living_nodes`.
        first: at the start of a job, when what can never be placed is the user's mistake.

    Raises:
        UserError: at the start, the cluster can't do it even if it were idle (and can't grow by itself).
        TransientError: nodes stayed busy or gone for `cluster.wait` seconds.
    """
    begun, told = time.monotonic(), 0.0
    while True:
        head.check()
        nodes = living_nodes(doubtful)
        places = demand_of(cluster, nodes).among(nodes, free=True)
        if silent := {place.node.id for place in places if not place.node.answers()}:
            doubtful |= silent
            continue
        if places:
            return places
        if first and not can_grow():
            refuse_impossible(cluster, living_nodes())
        waited = time.monotonic() - begun
        demand = demand_of(cluster, nodes)
        if waited > cluster.wait:
            raise TransientError(
                f"waited {cluster.wait} s for {demand}; there are: {'; '.join(map(str, nodes)) or 'none'} (all that "
                "others don't use)"
            )
        if waited >= told:
            told += TOLD_EVERY
            fitting = [node for node in nodes if demand.fit(node.free_cpus, node.free_gpus) >= max(1, demand.workers)]
            free = f"{len(fitting)} of {len(nodes)} nodes are free"
            say(f"waiting for {demand}: {free} ({waited:.0f} of {cluster.wait} s)")
        time.sleep(0.2)


def own_places(cluster: ClusterSpec) -> list[Place]:
    """All workers on this machine; UserError if it can't run so many."""
    import torch

    cpus, gpus = float(available_cpus()), float(torch.cuda.device_count())
    node = Node("", LOCAL, 0, cpus, gpus, cpus, gpus)
    refuse_impossible(cluster, [node])
    return demand_of(cluster, [node]).among([node], free=True)


def can_grow() -> bool:
    """Whether the cluster starts nodes by itself when somebody waits for them."""
    from ray._private import state

    return bool(state.state.get_max_resources_from_cluster_config())
