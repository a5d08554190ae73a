"""Processes that train the trials of a sweep: Ray starts them where there is room, and each is kept for the next."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayActorError, RayTaskError

from rwkv_jobs.trial import Outcome, ProcessDied
from rwkvctl.base.errors import UserError
from rwkvctl.config.specs.jobs import TuneSpec

LOOK_EVERY = 10.0
"""Seconds between two looks at how many trials the cluster has room for."""


@ray.remote(max_restarts=0)
class Runner:
    """One process. What a training imports is imported once."""

    def __init__(self, threads: int) -> None:
        import torch

        from rwkv_jobs import trial

        torch.set_num_threads(threads)
        self.trial = trial

    def train(self, fields: dict[str, Any], run_dir: str, timed: bool) -> dict[str, Any]:
        return self.trial.sent(self.trial.train(fields, Path(run_dir), timed=timed))


class Pool:
    """The runners of a sweep: as many as trials may run at once, made when they are needed."""

    def __init__(self, spec: TuneSpec):
        self.spec, self.cluster = spec, spec.base.cluster
        self.free: list[Any] = []
        self.used = 0
        self.looked, self.room = 0.0, 0

    def demand(self) -> dict[str, float]:
        """What one trial reserves."""
        workers = self.cluster.workers or 1
        each = self.spec.gpus_per_trial or (1.0 if ray.cluster_resources().get("GPU") else 0.0)
        return {"CPU": float(workers * self.cluster.cpus_per_worker), "GPU": workers * each}

    def places(self) -> int:
        """How many trials may run at once: on what each node has, and no more than `concurrency`."""
        if time.monotonic() - self.looked > LOOK_EVERY or not self.room:
            demand = {kind: amount for kind, amount in self.demand().items() if amount}
            nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            self.room = sum(min(fit(node.get(kind, 0.0), amount) for kind, amount in demand.items()) for node in nodes)
            self.looked = time.monotonic()
            if self.room == 0:
                shown = " and ".join(f"{amount:g} {kind}s" for kind, amount in demand.items())
                raise UserError(f"a trial needs {shown} on one node, and no node has so much; give it fewer workers")
        return min(self.room, self.spec.concurrency or self.room)

    def take(self) -> Any | None:
        """A runner for a trial; None while all that may run are busy."""
        if self.used >= self.places():
            return None
        self.used += 1
        if self.free:
            return self.free.pop()
        demand = self.demand()
        options = {"num_cpus": demand["CPU"], "num_gpus": demand["GPU"]}
        return Runner.options(**options).remote(self.cluster.cpus_per_worker)  # type: ignore[attr-defined]

    def give_back(self, runner: Any, *, keep: bool) -> None:
        self.used -= 1
        if keep:
            self.free.append(runner)
        else:
            ray.kill(runner)

    def start(self, runner: Any, fields: dict[str, Any], run_dir: Path, *, timed: bool) -> Any:
        """Have a runner train a trial; returns at once."""
        return runner.train.remote(fields, str(run_dir), timed)

    def ended(self, calls: list[Any], timeout: float) -> list[Any]:
        """Those of the calls that have ended, after waiting for one at most so long."""
        return ray.wait(calls, num_returns=1, timeout=timeout)[0]

    def outcome(self, call: Any) -> Outcome:
        """How a trial ended. Raises ProcessDied where its process did not live to say it."""
        try:
            return Outcome(**ray.get(call))
        except OutOfMemoryError:
            return Outcome("infeasible", "out of memory", clean=False)
        except RayActorError as error:
            raise ProcessDied(reason(error)) from None
        except RayTaskError as error:
            return Outcome("failed", " ".join(str(error.cause).split())[:200], clean=False)


def fit(have: float, wanted: float) -> int:
    """How often an amount goes into another: a third of a GPU three times into one."""
    return int(have / wanted + 1e-6)


def reason(error: RayActorError) -> str:
    """Why a process ended, in a few words."""
    text = str(error)
    if "SIGKILL" in text or "signal 9" in text:
        return "its process was killed by SIGKILL (out of memory?)"
    if "node died" in text or "node is dead" in text or "node has died" in text:
        return "its node died"
    return "its process died"
