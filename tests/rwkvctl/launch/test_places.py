"""Where workers go is decided node by node."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rwkvctl.base.errors import UserError
from rwkvctl.config.specs.jobs import FinetuneSpec
from rwkvctl.config.specs.parts import ClusterSpec
from rwkvctl.launch import workers
from rwkvctl.launch.places import Node, Place, demand_of, refuse_impossible


def node(name: str, cpus: float, gpus: float = 0, free: tuple[float, float] | None = None) -> Node:
    return Node(name, name, 0, cpus, gpus, *(free or (cpus, gpus)))


GPUS = [node("a", 32, 8), node("b", 32, 8), node("c", 32, 4), node("head", 8)]
CPUS = [node("a", 4), node("b", 2)]


@pytest.mark.parametrize(
    ("cluster", "nodes", "expected"),
    [
        ({"nodes": 2, "gpus_per_node": 8}, GPUS, {"a": 8, "b": 8}),
        ({"nodes": 2}, GPUS, {"a": 4, "b": 4}),  # as many as every GPU node has
        ({"nodes": "1:4", "gpus_per_node": 8}, GPUS, {"a": 8, "b": 8}),
        ({"nodes": 3, "gpus_per_node": 8}, GPUS, {}),
        ({"workers": 10}, GPUS, {"a": 8, "b": 2}),
        ({"workers": 21}, GPUS, {}),
        ({"workers": 3, "cpus_per_worker": 2}, CPUS, {"a": 2, "b": 1}),
        ({"workers": 4, "cpus_per_worker": 2}, CPUS, {}),
        ({"nodes": 2}, CPUS, {"a": 1, "b": 1}),
        ({"nodes": 2, "gpus_per_node": 3}, CPUS, {}),
        ({"workers": 8, "nodes": 2, "gpus_per_node": 8}, GPUS, {"a": 4, "b": 4}),
    ],
)
def test_places(cluster: dict[str, object], nodes: list[Node], expected: dict[str, int]):
    demand = demand_of(ClusterSpec.model_validate(cluster), nodes)
    assert {place.node.address: place.workers for place in demand.among(nodes, free=False)} == expected


def test_only_what_is_free_counts_when_a_job_starts():
    nodes = [node("a", 4, free=(0, 0)), node("b", 2)]
    demand = demand_of(ClusterSpec(nodes=1), nodes)
    assert [place.node.address for place in demand.among(nodes, free=True)] == ["b"]
    assert demand_of(ClusterSpec(nodes=2), nodes).among(nodes, free=True) == []


@pytest.mark.parametrize(
    ("cluster", "nodes", "said"),
    [
        (
            {"nodes": 3, "gpus_per_node": 8},
            GPUS,
            "cluster.nodes 3: 3 nodes with 8 GPUs and 8 CPUs are needed, and 2 of 4 have them "
            "(a: 8 GPUs, 32 CPUs; b: 8 GPUs, 32 CPUs; c: 4 GPUs, 32 CPUs; head: 8 CPUs): ask for fewer, or start more "
            "nodes",
        ),
        (
            {"workers": 4, "cpus_per_worker": 2},
            CPUS,
            "cluster.workers 4 x cluster.cpus_per_worker 2 needs 8 CPUs; the cluster has a: 4 CPUs; b: 2 CPUs: ask for "
            "fewer",
        ),
    ],
)
def test_what_can_never_be_placed_is_refused_with_what_there_is(
    cluster: dict[str, object], nodes: list[Node], said: str
):
    with pytest.raises(UserError) as error:
        refuse_impossible(ClusterSpec.model_validate(cluster), nodes)
    assert str(error.value) == said


@pytest.mark.parametrize(("batch", "grows"), [(12, True), (4, False)])  # for three workers after two
def test_an_elastic_job_grows_onto_a_node_that_its_batch_can_use_when_it_was_free_for_a_while(
    batch: int, grows: bool, monkeypatch: pytest.MonkeyPatch
):
    nodes = [node("a", 1, free=(0, 0)), node("b", 1, free=(0, 0)), node("c", 1)]
    monkeypatch.setattr(workers.place_finding, "living_nodes", lambda doubtful=None: nodes)
    spec = FinetuneSpec.model_validate(
        {
            "data": {"path": "/nowhere", "dataset": "toy"},
            "train": {"batch_size": batch, "epochs": 1},
            "optimizer": {"lr": 1e-3},
            "cluster": {"address": "head:6379", "nodes": "1:3"},
        }
    )
    group: Any = SimpleNamespace(places=[Place(nodes[0], 1), Place(nodes[1], 1)])
    watch = workers.Watch(group, spec, workers.Course(Path(), 3))
    now = time.monotonic()
    assert not watch.can_grow(now), "it has not been free for long"
    assert watch.can_grow(now + workers.ROOM_FOR + 1) == grows
