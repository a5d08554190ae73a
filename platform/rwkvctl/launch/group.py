"""The workers of a job, on this machine or on the nodes of a cluster: started together, watched together, ended
together."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from rwkvctl.base import identity
from rwkvctl.base.errors import UserError
from rwkvctl.launch import head
from rwkvctl.launch.agent import SAME, Agent, NodeAgent, WorkerState, about
from rwkvctl.launch.nursery import twin_address
from rwkvctl.launch.places import Place, living_nodes
from rwkvctl.runs import mirror

POLLED_EVERY = 0.25
NODE_ANSWERS_WITHIN = 20.0
"""Seconds without an answer after which a node is given up, long before Ray's own health check with its defaults."""
STARTS_WITHIN = 180.0
"""Seconds that a node has for its first answer: a process that imports Ray, on a busy machine or from a slow disk."""
RESERVED_WITHIN = 30.0
"""Seconds in which places that were free a moment ago must be ours."""
GIVEN_BACK_WITHIN = 10.0
"""Seconds in which the cluster must show as free what we have given back."""

GONE = "gone"
Group = TypeVar("Group", bound="WorkerGroup")


@dataclass
class Member:
    """One node of the group."""

    place: Place
    agent: Any
    about: dict[str, Any]
    question: Any = None
    asked: float = 0.0
    lost: str | None = None
    """Why it is given up."""

    def why(self) -> str:
        """What is known of a node that is given up."""
        if self.lost != GONE:
            return str(self.lost)
        if not self.place.node.answers():
            return f"node {self.name} is gone"
        return f"the process that looks after workers on {self.name} ended"

    @property
    def name(self) -> str:
        return f"{self.about.get('host', '?')} ({self.place.node.address})"


class WorkerGroup:
    """All workers of a job. Ranks follow the members, so that those of one node are neighbours."""

    def __init__(self, places: list[Place]):
        self.places = places
        self.members: list[Member] = []
        self.world_size = sum(place.workers for place in places)

    def start(self, target: str, arguments: dict[str, Any], environment: dict[str, str]) -> None:
        """Start all workers, with what torch needs to join them into one group."""
        raise NotImplementedError

    def poll(self) -> list[WorkerState]:
        """How the workers are, after at most a quarter of a second. A node that is gone is marked `lost`."""
        raise NotImplementedError

    def look_for_the_gone(self) -> None:
        """Mark nodes as `lost` that are gone by now."""

    def stacks(self) -> dict[int, str]:
        """What every worker that can be asked is doing."""
        raise NotImplementedError

    def clear(self) -> bool:
        """End all workers at once, for others to be started in their place; False if this needs another group."""
        raise NotImplementedError

    def stop(self, grace: float = 0.0) -> None:
        """End all workers, by SIGTERM first if they are given `grace` seconds, and give the nodes back."""
        raise NotImplementedError

    def shares(self, arguments: dict[str, Any], environment: dict[str, str]) -> list[list[dict[str, Any]]]:
        """What the agent of each node is to start."""
        first, shares = 0, []
        meeting = {"MASTER_ADDR": self.members[0].about["address"], "MASTER_PORT": str(self.members[0].about["port"])}
        for number, member in enumerate(self.members):
            share = []
            for local in range(member.place.workers):
                own = {
                    "RANK": str(first + local),
                    "WORLD_SIZE": str(self.world_size),
                    "LOCAL_RANK": str(local),
                    "LOCAL_WORLD_SIZE": str(member.place.workers),
                    "GROUP_RANK": str(number),
                }
                own |= meeting | interfaces(member.about["interface"], len(self.members)) | environment
                share.append({"rank": first + local, "arguments": arguments, "environment": own})
            first += member.place.workers
            shares.append(share)
        return shares

    def node_of(self, rank: int) -> Member:
        """The node that a rank runs on."""
        first = 0
        for member in self.members:
            if rank < first + member.place.workers:
                return member
            first += member.place.workers
        raise IndexError(rank)


class LocalGroup(WorkerGroup):
    """The workers of a job on this machine, started by this process itself: nothing of Ray is needed for them."""

    def __init__(self, place: Place, modules: list[str]):
        super().__init__([place])
        self.agent = Agent(modules, twin_address())
        self.members = [Member(place, self.agent, about(place.node.address))]

    def start(self, target: str, arguments: dict[str, Any], environment: dict[str, str]) -> None:
        [share] = self.shares(arguments, environment)
        self.agent.start(target, share)

    def poll(self) -> list[WorkerState]:
        states = self.agent.poll()
        time.sleep(POLLED_EVERY / 5)
        return states

    def stacks(self) -> dict[int, str]:
        return self.agent.stacks()

    def clear(self) -> bool:
        [member] = self.members
        member.about["port"] = self.agent.clear(member.about["address"])
        return member.about["port"] is not None

    def stop(self, grace: float = 0.0) -> None:
        self.agent.stop(grace)


class ClusterGroup(WorkerGroup):
    """Actors on the nodes of `places`, in the order of their addresses, and the workers that they start."""

    def __init__(self, places: list[Place], cpus: int, gpus: int, modules: list[str]):
        import ray
        from ray.util.placement_group import placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        super().__init__(sorted(places, key=lambda place: place.node.address))
        self.bundles = [{"CPU": p.workers * cpus} | ({"GPU": p.workers * gpus} if gpus else {}) for p in self.places]
        where = [{"ray.io/node-id": place.node.id} for place in self.places]
        self.reserved = placement_group(self.bundles, strategy="PACK", bundle_label_selector=where)
        if not self.reserved.wait(RESERVED_WITHIN):
            self.release()
            raise PlacesTaken("the nodes that were free have been taken by another job")
        driver = identity.of_process()
        self.members = [
            Member(
                place,
                ray.remote(NodeAgent)
                .options(
                    num_cpus=bundle["CPU"],
                    num_gpus=bundle.get("GPU", 0),
                    max_concurrency=4,
                    scheduling_strategy=PlacementGroupSchedulingStrategy(self.reserved, index),
                )
                .remote(modules, driver),
                {},
            )
            for index, (place, bundle) in enumerate(zip(self.places, self.bundles, strict=True))
        ]

    def meet(self) -> None:
        """Learn who the nodes are.

        Raises:
            UserError: a node lacks our package, or runs other code than this process.
            NodeLost: a node did not come up.
        """
        import ray
        from ray.exceptions import GetTimeoutError, RayActorError

        for member in self.members:
            try:
                member.about = ray.get(member.agent.describe.remote(), timeout=STARTS_WITHIN)
            except (RayActorError, GetTimeoutError) as error:
                if (missing := missing_module(error)) is not None:
                    raise UserError(
                        f"node {member.place.node.address}: {missing} is not installed there; install the same rwkvctl "
                        "on every node, or submit through the job server (--address http://HOST:8265), which ships it"
                    ) from None
                reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
                raise NodeLost(member, f"node {member.place.node.address} did not start ({reason[0]})") from error

    def compare(self, here: dict[str, str]) -> None:
        """UserError for the first node that runs something else than this process."""
        for member in self.members:
            if differing := [key for key in SAME if member.about[key] != here[key]]:
                they = ", ".join(f"{key} {member.about[key]} (here {here[key]})" for key in differing)
                raise UserError(
                    f"node {member.name}: runs {they}; install the same on every node, or submit through the job "
                    "server (--address http://HOST:8265), which ships the code"
                )

    def check_storage(self, run_dir: Path) -> None:
        """UserError for the first node that does not read what is written into the run's folder here, or cannot fetch
        the run from its store."""
        if mirror.of(run_dir) is not None:
            problems = self.ask_all(lambda agent, _: agent.opens.remote(mirror.address(run_dir)))
            for member, problem in zip(self.members, problems, strict=True):
                if problem:
                    raise UserError(f"node {member.name}: {problem}")
            return
        probe, content = run_dir / f".seen-{os.getpid()}", os.urandom(8).hex()
        probe.write_text(content)
        try:
            seen = self.ask_all(lambda agent, _: agent.sees.remote(str(probe), content))
            for member in (member for member, sees in zip(self.members, seen, strict=True) if not sees):
                raise UserError(
                    f"node {member.name}: does not see {run_dir}, which this process writes to; set storage to a "
                    "folder that all nodes share, or to s3://BUCKET/FOLDER"
                )
        finally:
            probe.unlink(missing_ok=True)

    def start(self, target: str, arguments: dict[str, Any], environment: dict[str, str]) -> None:
        shares = self.shares(arguments, environment)
        self.ask_all(lambda agent, number: agent.start.remote(target, shares[number]))

    def ask_all(self, question: Callable[[Any, int], Any], within: float = STARTS_WITHIN) -> list[Any]:
        """What the agents answer to a question, which is put to each with its number. NodeLost for one that is gone."""
        import ray
        from ray.exceptions import GetTimeoutError, RayActorError

        answers = []
        for member, asked in [(member, question(member.agent, n)) for n, member in enumerate(self.members)]:
            try:
                answers.append(ray.get(asked, timeout=within))
            except (RayActorError, GetTimeoutError) as error:
                raise NodeLost(member, f"node {member.name} went away while the workers were started") from error
        return answers

    def poll(self) -> list[WorkerState]:
        """Those of all nodes that have answered since the last call; a node is lost too when it has been silent for
        `NODE_ANSWERS_WITHIN`."""
        import ray
        from ray.exceptions import RayActorError

        now = time.monotonic()
        living = [member for member in self.members if member.lost is None]
        for member in living:
            if member.question is None:
                member.question, member.asked = member.agent.poll.remote(), now
        ready, _ = ray.wait([m.question for m in living], num_returns=len(living), timeout=POLLED_EVERY)
        states: list[WorkerState] = []
        for member in living:
            if member.question in ready:
                try:
                    states += ray.get(member.question)
                    member.question = None
                except RayActorError:
                    member.lost = GONE
            elif now - member.asked > NODE_ANSWERS_WITHIN:
                member.lost = f"node {member.name} has not answered for {NODE_ANSWERS_WITHIN:.0f} s"
        if len(ready) == len(living):
            time.sleep(POLLED_EVERY / 5)
        return states

    def look_for_the_gone(self) -> None:
        """Those on which nobody listens any more: their peers notice at once, Ray after a while."""
        for member in self.members:
            if member.lost is None and member.question is not None and not member.place.node.answers():
                member.lost = GONE

    def stacks(self) -> dict[int, str]:
        import ray

        found: dict[int, str] = {}
        for member in self.members:
            with contextlib.suppress(Exception):  # of a node that does not answer; the others' are worth having
                found |= ray.get(member.agent.stacks.remote(), timeout=10)
        return found

    def clear(self) -> bool:
        addresses = [member.about["address"] for member in self.members]
        try:
            ports = self.ask_all(lambda agent, n: agent.clear.remote(addresses[n]), NODE_ANSWERS_WITHIN)
        except NodeLost:
            return False
        for member, port in zip(self.members, ports, strict=True):
            member.about["port"] = port
            member.question = None  # about workers that are no more
        return None not in ports

    def stop(self, grace: float = 0.0) -> None:
        import ray

        answers = [member.agent.stop.remote(grace) for member in self.members if member.lost is None]
        with contextlib.suppress(Exception):  # whoever does not answer is killed below
            ray.wait(answers, num_returns=len(answers), timeout=grace + 5)
        if head.is_gone():
            return
        for member in self.members:
            ray.kill(member.agent)
        self.release()

    def release(self) -> None:
        """Give back what was reserved, and wait until the cluster shows it as free: an elastic job that looks too
        early does not see the nodes that it had itself."""
        from ray.util.placement_group import remove_placement_group

        remove_placement_group(self.reserved)
        deadline = time.monotonic() + GIVEN_BACK_WITHIN
        while not self.is_free_again() and time.monotonic() < deadline:
            time.sleep(0.05)

    def is_free_again(self) -> bool:
        now = {node.id: node for node in living_nodes()}
        for place, bundle in zip(self.places, self.bundles, strict=True):
            found = now.get(place.node.id)
            if found is None or not found.answers():
                continue
            if found.free_cpus < bundle["CPU"] or found.free_gpus < bundle.get("GPU", 0):
                return False
        return True


class PlacesTaken(Exception):
    """Another job was faster."""


class NodeLost(Exception):
    """A node went away before its workers had started."""

    def __init__(self, member: Member, cause: str):
        super().__init__(cause)
        self.member = member


@contextmanager
def ended(group: Group) -> Iterator[Group]:
    """A group that is ended, with all of its workers, when the block is left."""
    try:
        yield group
    finally:
        group.stop()


def interfaces(name: str | None, nodes: int) -> dict[str, str]:
    """Which network interface collectives take, unless the cluster's administrator has said so."""
    if name is None:
        return {}
    kinds = ["GLOO_SOCKET_IFNAME"] + (["NCCL_SOCKET_IFNAME"] if nodes > 1 else [])
    return {kind: os.environ.get(kind, name) for kind in kinds}


def missing_module(error: Exception) -> str | None:
    """The package of ours that a node lacks, from the error that its agent ended with."""
    text = str(error)
    for name in ("rwkvctl", "rwkv_jobs", "rwkv_unet", "biwkv"):
        if f"No module named '{name}" in text:
            return name
    return None
