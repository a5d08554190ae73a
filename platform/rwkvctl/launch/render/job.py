"""What a rendered job needs, whichever scheduler starts it: its complete spec, how many nodes, and what each of them
has to have."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rwkvctl.base.errors import UserError
from rwkvctl.base.uris import mask
from rwkvctl.config.settings import Settings
from rwkvctl.config.specs.jobs import JOBS, EvaluateSpec, JobSpec, PredictSpec, TrainingSpec, TuneSpec
from rwkvctl.config.specs.load import build, dump
from rwkvctl.config.specs.parts import node_range
from rwkvctl.launch.render.places import Placed

PER_NODE_CPUS, PER_NODE_GB = 1, 4
"""For Ray's own processes on each node, beside what the workers need."""
SHARED_MEMORY_GB = 2
"""Of /dev/shm for each worker, whose loader processes hand their batches over there."""


@dataclass(frozen=True)
class RenderedJob:
    """A job as its cluster will see it."""

    spec: JobSpec
    command: str
    """What the user typed, on one line, without secrets."""
    nodes: tuple[int, int]
    """Fewest and most nodes; the same twice unless the job is elastic."""
    workers_per_node: int
    gpus_per_node: int
    cpus_per_node: int
    memory_gb: int
    settings: Settings
    copies: tuple[tuple[str, str], ...] = ()
    """What has to be on the cluster before the job starts: from here, to there."""

    @property
    def name(self) -> str:
        assert self.spec.name is not None, "a rendered job has a name: a second try continues its run"
        return self.spec.name

    @property
    def elastic(self) -> bool:
        return self.nodes[0] != self.nodes[1]

    @property
    def entrypoint(self) -> str:
        """What is run on the head, followed by the file that holds the spec there."""
        return f"python -P -m rwkv_jobs.{self.spec.job} --resume"

    def texts(self) -> list[str]:
        """Every text of the spec, wherever in it."""
        return texts_of(self.spec.model_dump(mode="json"))


def rendered_job(
    spec: JobSpec, arguments: list[str], machine: Settings, placed: Callable[[JobSpec], Placed]
) -> RenderedJob:
    """Complete a spec for a cluster that will be there when the job starts.

    Args:
        arguments: the command line, without the program's name.
        placed: gives the spec its paths on the cluster.
    """
    if isinstance(spec, PredictSpec):
        raise UserError("predict: writes masks where it is typed; it cannot be rendered for a cluster")
    if spec.cluster.launcher == "process" and not isinstance(spec, EvaluateSpec):
        raise UserError("cluster.launcher process: is for one process without a cluster; leave it out to render a job")
    nodes = node_range(spec.cluster.nodes)
    gpus, workers = shape(spec, nodes, machine)
    found = placed(on_cluster(spec, nodes, gpus, workers))
    spec = found.spec
    if spec.name is None:
        spec = spec.model_copy(update={"name": derived_name(spec)})
    return RenderedJob(
        spec=spec,
        command=one_line(shlex.join(["rwkvctl", *arguments])),
        nodes=nodes,
        workers_per_node=workers,
        gpus_per_node=gpus,
        cpus_per_node=workers * cpus_of_worker(spec) + PER_NODE_CPUS,
        memory_gb=workers * machine.worker_memory_gb + PER_NODE_GB,
        settings=machine,
        copies=found.copies,
    )


def shape(spec: JobSpec, nodes: tuple[int, int], machine: Settings) -> tuple[int, int]:
    """GPUs and workers of each node; UserError where the numbers that were given do not go together."""
    cluster, (fewest, most) = spec.cluster, nodes
    gpus = cluster.gpus_per_node if cluster.gpus_per_node is not None else machine.gpus_per_node
    if cluster.workers is None or isinstance(spec, TuneSpec):
        gpus = 1 if gpus is None else gpus
        return gpus, gpus or 1
    if fewest != most or cluster.workers % most:
        raise UserError(
            f"cluster.workers {cluster.workers}: does not spread evenly over {cluster.nodes} nodes; "
            "leave it out and give --gpus-per-node"
        )
    workers = cluster.workers // most
    if gpus and gpus != workers:
        raise UserError(
            f"cluster.workers {cluster.workers} on {most} nodes is {workers} for each, and --gpus-per-node is {gpus}: "
            "a worker has one GPU; leave one of the two out"
        )
    return (workers if gpus is None else gpus), workers


def on_cluster(spec: JobSpec, nodes: tuple[int, int], gpus: int, workers: int) -> JobSpec:
    """The spec with the cluster that it is started on, checked again: a batch has to spread over all workers."""
    fixed = nodes[0] if nodes[0] == nodes[1] else None
    update: dict[str, Any] = {"launcher": "ray", "address": "auto", "gpus_per_node": gpus}
    update["nodes"] = fixed or f"{nodes[0]}:{nodes[1]}"
    if not isinstance(spec, TuneSpec):
        update["workers"] = None if fixed is None else fixed * workers
    fields = spec.model_dump(mode="json", by_alias=True)
    for part in (fields, fields.get("base")):
        if part is not None:
            part["cluster"] |= update
    if isinstance(spec, TuneSpec):
        fields["concurrency"] = spec.concurrency or nodes[1] * workers
    return build(JOBS[spec.job], fields, "--render")


def cpus_of_worker(spec: JobSpec) -> int:
    """Its own threads, and the processes that load for it."""
    training = spec.base if isinstance(spec, TuneSpec) else spec
    own = training.cluster.cpus_per_worker
    if isinstance(training, TrainingSpec):
        return own + training.data.workers
    return own + (2 * training.loader_workers if isinstance(training, EvaluateSpec) else 0)


def derived_name(spec: JobSpec) -> str:
    """`pretrain-imagenet-3f2a91c0`: the same for the same spec, whose run a second submission continues."""
    training = spec.base if isinstance(spec, TuneSpec) else spec
    about = training.data.dataset if isinstance(training, TrainingSpec) else None
    content = json.dumps(spec.model_dump(mode="json", by_alias=True), sort_keys=True)
    digest = hashlib.sha256(content.encode()).hexdigest()[:8]
    return "-".join(part for part in (spec.job, about, digest) if part)


def spec_text(job: RenderedJob) -> str:
    """The spec as the YAML that the job is given."""
    return dump(job.spec)


def one_line(text: str) -> str:
    """A text for a comment: no line break in it, which would end the comment, and no secret."""
    return mask(text).replace("\r", " ").replace("\n", " ")


def texts_of(node: Any) -> list[str]:
    if isinstance(node, dict):
        node = list(node.values())
    if isinstance(node, list):
        return [text for item in node for text in texts_of(item)]
    return [node] if isinstance(node, str) else []
