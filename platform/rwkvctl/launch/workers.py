"""Run one function on every training worker, to its end: on this machine, or through Ray on a cluster.

This process, or one actor on each node, starts the workers as processes. When one of them dies, or a node, all are
ended and started again, where there is room for them, and the function goes on from its own checkpoint.
"""

from __future__ import annotations

import json
import os
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rwkvctl.base.errors import KINDS, JobFailedError, TransientError, UserError
from rwkvctl.base.files import write_bytes
from rwkvctl.config.specs.jobs import JobSpec, TrainingSpec
from rwkvctl.launch import head
from rwkvctl.launch import places as place_finding
from rwkvctl.launch.agent import WorkerState, versions
from rwkvctl.launch.group import ClusterGroup, LocalGroup, NodeLost, PlacesTaken, WorkerGroup, ended
from rwkvctl.launch.places import Place, own_places
from rwkvctl.launch.session import ray_session
from rwkvctl.runs import mirror
from rwkvctl.runs.journal import say
from rwkvctl.runs.lease import JOB
from rwkvctl.runs.stop import Stopped, asked

WorkerFunction = Callable[[Any, Path], None]
RESTART = "RWKVCTL_RESTART"
"""Variable that tells workers of the restart they belong to: its cause, the step that was reached."""
TARGET = "rwkvctl.launch.worker_process:run"
LAST_WORDS = 1.0
"""Seconds in which the workers that fail after the first may say why: the first to be seen need not be the cause."""
SAVES_WITHIN = 60.0
"""Seconds that workers have to write a checkpoint when they are asked to stop."""
ROOM_FOR = 10.0
"""Seconds that a node must have been free before an elastic job grows onto it."""


@dataclass
class Failure(Exception):
    """Workers ended before their function did, and may do better when they are started again.

    `transient`: what they ran on failed, not they themselves.
    """

    cause: str
    transient: bool
    lost: set[str] = field(default_factory=set)
    """Ids of nodes whose agents do not answer."""
    log: str = ""


@dataclass
class Course:
    """How a job has gone so far: its restarts, and the last step that a worker has shown."""

    run_dir: Path
    max_failures: int
    step: int = -1
    restarts: int = 0
    failures: int = 0
    """In a row, without a new step between."""
    failed_at: int = -1
    lost: set[str] = field(default_factory=set)
    note: dict[str, Any] | None = None

    def say(self, text: str) -> None:
        """A line for whoever watches; by the driver, while no worker lives."""
        try:
            say(self.run_dir, text)
        except OSError:  # a full disk: who is told must not depend on it
            print(text, file=sys.stderr, flush=True)

    def begin_again(self, cause: str) -> None:
        """Note a restart."""
        self.restarts += 1
        self.note = {"cause": cause, "step": self.step, "since": time.time()}

    def fail(self, failure: Failure) -> None:
        """Note a failure and go on, or raise what the job ends with."""
        self.failures = self.failures + 1 if self.step <= self.failed_at else 1
        self.failed_at = max(self.step, self.failed_at)
        self.lost |= failure.lost
        where = f" at step {self.step}" if self.step >= 0 else " before the first step"
        if failure.log:
            print(failure.log, file=sys.stderr, flush=True)
        if self.failures > self.max_failures:
            kind = TransientError if failure.transient else JobFailedError
            times = f"{self.failures} times in a row" if self.failures > 1 else "once"
            raise kind(f"the workers failed {times}; the last time{where}: {failure.cause}")
        self.say(f"{failure.cause}{where}; starting all workers again ({self.failures} of {self.max_failures})")
        self.begin_again(failure.cause)


def run_workers(function: WorkerFunction, spec: JobSpec, run_dir: Path) -> None:
    """Run `function(spec, run_dir)` on all workers and return when the last is done.

    Raises:
        UserError, JobFailedError: what a worker raised of these; it would fail again.
        TransientError: workers or nodes were lost more than `cluster.max_failures` times in a row, or are missing.
    """
    os.environ.setdefault(JOB, uuid.uuid4().hex)
    with nullcontext() if spec.cluster.address is None else ray_session(spec.cluster):
        course = Course(run_dir, spec.cluster.max_failures)
        while True:
            try:
                where = own_places(spec.cluster) if spec.cluster.address is None else places_on_cluster(spec, course)
                cause = run_once(function, spec, run_dir, allowed(spec, where), course)
                if cause is None:
                    return
                course.begin_again(cause)
            except (UserError, JobFailedError):
                raise
            except Exception as error:
                head.look()  # without it, nodes and workers are only what went next
                course.fail(failure_of(error))


def failure_of(error: Exception) -> Failure:
    """What may do better when it is tried again; raises any other error."""
    match error:
        case Failure():
            return error
        case PlacesTaken():
            return Failure(str(error), True)
        case NodeLost():
            return Failure(str(error), True, {error.member.place.node.id})
    raise error


def places_on_cluster(spec: JobSpec, course: Course) -> list[Place]:
    """Where the workers go; waits until there is room for them."""
    return place_finding.find_places(spec.cluster, course.lost, first=course.restarts == 0, say=course.say)


def allowed(spec: JobSpec, places: list[Place]) -> list[Place]:
    """As many of the places as the batch can be shared out to; UserError if these are fewer than the job asks for."""
    if not isinstance(spec, TrainingSpec):
        return places
    for count in range(len(places), 0, -1):
        problem = spec.batch_problem(sum(place.workers for place in places[:count]))
        if problem is None:
            return places[:count]
        if spec.cluster.nodes is None or count == spec.cluster.least_nodes:
            raise UserError(problem)
    return places


def run_once(function: WorkerFunction, spec: JobSpec, run_dir: Path, where: list[Place], course: Course) -> str | None:
    """Start the workers and look after them until they end, again and again where only they have failed; why they have
    stopped to start again on other nodes, with a checkpoint of their last step, or None where they are done.

    Raises:
        Failure: they did not come to their end, and the group that looks after them is not what it was.
    """
    arguments = {
        "function": f"{function.__module__}:{function.__name__}",
        "spec": spec.model_dump(mode="json", by_alias=True),
        "run": mirror.address(run_dir),
    }
    with group_on(where, spec, run_dir, [function.__module__]) as group:
        while True:
            note = {} if course.note is None else {RESTART: json.dumps(course.note)}
            group.start(TARGET, arguments, {JOB: os.environ[JOB]} | note)
            try:
                return Watch(group, spec, course).to_the_end()
            except Failure as failure:
                head.look()
                if failure.lost or not group.clear():
                    raise
                course.fail(failure)


@contextmanager
def group_on(where: list[Place], spec: JobSpec, run_dir: Path, modules: list[str]) -> Iterator[WorkerGroup]:
    """A group of workers that can be started: the nodes of a cluster are there, and alike, and see the run's folder."""
    if spec.cluster.address is None:
        with ended(LocalGroup(where[0], modules)) as local:
            yield local
        return
    demand = place_finding.demand_of(spec.cluster, [place.node for place in where])
    with ended(ClusterGroup(where, demand.cpus, demand.gpus, modules)) as group:
        group.meet()
        group.compare(versions())
        group.check_storage(run_dir)
        yield group


class Watch:
    """Looks at the workers of a group until all have ended."""

    def __init__(self, group: WorkerGroup, spec: JobSpec, course: Course):
        self.group, self.spec, self.cluster, self.course = group, spec, spec.cluster, course
        self.known: dict[int, WorkerState] = {}
        self.marks, self.moved = 0, time.monotonic()
        self.looked = self.room_since = time.monotonic()

    def to_the_end(self) -> str | None:
        """None when all are done; why they were stopped to start again on other nodes."""
        while True:
            try:
                self.look()
            except KeyboardInterrupt:
                request = asked(self.course.run_dir)
                self.group.stop(0.0 if request is not None and request.now else SAVES_WITHIN)
                raise
            if self.all_done():
                return None
            if self.has_failed():
                self.listen_to_last_words()
                raise self.why()
            if self.stands_still():
                raise self.who_stands_still()
            if self.cluster.address is not None and (cause := self.better_elsewhere()) is not None:
                self.group.stop(SAVES_WITHIN)
                return cause

    def look(self) -> None:
        head.check()
        for state in self.group.poll():
            self.known[state.rank] = state
            if state.beat is not None:
                self.course.step = max(self.course.step, state.beat.step)
        marks = sum(state.beat.marks for state in self.known.values() if state.beat is not None)
        if marks != self.marks:
            self.marks, self.moved = marks, time.monotonic()

    def all_done(self) -> bool:
        ended = [state for state in self.known.values() if state.exit == 0 and state.outcome is None]
        return len(ended) == self.group.world_size

    def has_failed(self) -> bool:
        lost = any(member.lost for member in self.group.members)
        return lost or any(state.exit is not None and (state.exit or state.outcome) for state in self.known.values())

    def listen_to_last_words(self) -> None:
        until = time.monotonic() + LAST_WORDS
        while time.monotonic() < until:
            self.look()

    def why(self) -> BaseException:
        """What ended the workers: a lost node or a killed process before the errors that its peers have from it."""
        failed = [state for state in self.known.values() if state.exit is not None and (state.exit or state.outcome)]
        if all(is_about_a_peer(state.outcome) for state in failed):
            self.group.look_for_the_gone()
        lost = [member for member in self.group.members if member.lost]
        for state in failed:
            if state.outcome is not None and kind_of(state) in KINDS:
                return KINDS[kind_of(state)](state.outcome["message"])
        if codes := [
            int(state.outcome["message"]) for state in failed if state.outcome and kind_of(state) == "Stopped"
        ]:
            return Stopped(codes[0])
        if lost:
            return Failure("; ".join(m.why() for m in lost), True, {m.place.node.id for m in lost})
        killed = [state for state in failed if state.outcome is None]
        first = (killed or sorted(failed, key=lambda state: is_about_a_peer(state.outcome)))[0]
        who = f"worker {first.rank} on {self.group.node_of(first.rank).name}"
        if first.outcome is None:
            return Failure(f"{who} {how_it_ended(first.exit)}", True)
        if lost_a_peer(first.outcome):
            return Failure(f"{who} lost its connection to another worker", True)
        said = f"{first.outcome['kind']}: {first.outcome['message']}"
        return Failure(f"{who} failed ({said})", is_about_a_peer(first.outcome), log=first.log)

    def stands_still(self) -> bool:
        return time.monotonic() - self.moved > self.cluster.hang_timeout

    def who_stands_still(self) -> Failure:
        """The rank that the others wait for, with the stacks of all in the run's artifacts."""
        suspended = [rank for rank, state in self.known.items() if state.stopped]
        stacks = self.group.stacks()
        for rank, text in stacks.items():
            path = self.course.run_dir / "artifacts" / "stacks" / f"step-{self.course.step}-rank-{rank}.txt"
            write_bytes(path, text.encode())
        beats = {rank: state.beat for rank, state in self.known.items() if state.beat is not None}
        silent = [rank for rank, beat in beats.items() if beat.alive_age > 10]
        fewest = min((beat.marks for beat in beats.values()), default=0)
        behind = [rank for rank, beat in beats.items() if beat.marks == fewest]
        rank = (suspended or silent or behind or [0])[0]
        doing = beats[rank].phase if rank in beats else "start"
        state = "is suspended" if rank in suspended else f"stands still in: {doing}"
        who = f"worker {rank} on {self.group.node_of(rank).name}"
        return Failure(
            f"no worker has moved for {self.cluster.hang_timeout} s; {who} {state} (stacks of all in artifacts/stacks)",
            True,
        )

    def better_elsewhere(self) -> str | None:
        """Why the workers should move, looked at once a second."""
        now = time.monotonic()
        if now - self.looked < 1:
            return None
        self.looked = now
        leaving = place_finding.draining_nodes()
        if names := [member.name for member in self.group.members if member.place.node.id in leaving]:
            return f"node {', '.join(names)} is about to be taken away"
        return "there is room for more nodes" if self.can_grow(now) else None

    def can_grow(self, now: float) -> bool:
        """Whether there have been free nodes for a while that an elastic job does not use yet, and could share its
        batch out to."""
        if self.cluster.nodes is None or len(self.group.places) >= self.cluster.most_nodes:
            return False
        used = {place.node.id for place in self.group.places}
        others = [node for node in place_finding.living_nodes(self.course.lost) if node.id not in used]
        each = self.group.places[0].workers
        demand = place_finding.demand_of(self.cluster, [place.node for place in self.group.places])
        fitting = [Place(node, each) for node in others if demand.fit(node.free_cpus, node.free_gpus) >= each]
        larger = [*self.group.places, *fitting][: self.cluster.most_nodes]
        if len(allowed(self.spec, larger)) <= len(self.group.places):
            self.room_since = now
            return False
        return now - self.room_since > ROOM_FOR


def kind_of(state: WorkerState) -> str:
    """The kind of a worker's outcome; empty where it left none."""
    return state.outcome["kind"] if state.outcome else ""


def how_it_ended(code: int | None) -> str:
    """`was killed by SIGKILL`, or `ended with code 3`."""
    import signal

    if code is None or code >= 0:
        return f"ended with code {code}"
    hint = " (out of memory?)" if -code == signal.SIGKILL else ""
    return f"was killed by {signal.Signals(-code).name}{hint}"


def is_about_a_peer(outcome: dict[str, str] | None) -> bool:
    """Whether an error may only say that another worker is gone."""
    text = (outcome or {}).get("message", "")
    return lost_a_peer(outcome) or "NCCL" in text or "gloo" in text


def lost_a_peer(outcome: dict[str, str] | None) -> bool:
    """Whether an error says nothing but that."""
    text = (outcome or {}).get("message", "")
    return any(sign in text for sign in ("Connection closed by peer", "Connection reset by peer", "Broken pipe"))
