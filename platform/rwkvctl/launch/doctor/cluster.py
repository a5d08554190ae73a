"""`python -m rwkvctl.launch.doctor.cluster REQUEST`: what every node of a cluster says of itself, as a line of JSON.

A process of its own, because Ray ends, blocks or floods the process that joins a cluster which cannot be joined.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shlex
import sys
import tempfile
import time
from typing import Any

from rwkvctl.base import lineage
from rwkvctl.launch import ship
from rwkvctl.launch.doctor import facts, tracking
from rwkvctl.launch.token import send_token_if_there_is_one

MARK = "rwkvctl-doctor: "
"""Before the line of JSON, among whatever else is written."""

Survey = dict[str, Any]
"""`nodes`: what is known of each; `gone`: names of those that have left; `tracking`: the server, seen from the driver;
or `error`: why nothing is known."""


def survey(request: dict[str, Any]) -> Survey:
    """Ask all nodes of the cluster that this process can join, each for a bounded time.

    Args:
        request: `address` (host:port, or auto in a job), `places` and `tracking_uri` of the settings, `seconds` for
            every round of questions, `name` of the files that are written into the storage, `first` that is there.
    """
    import ray

    with tempfile.TemporaryDirectory() as empty, contextlib.chdir(empty):  # Ray takes the folder to the nodes' path
        ray.init(address=request["address"], log_to_driver=False, logging_level=logging.ERROR)
        try:
            for module in (facts, lineage):  # as they are here: a node may have another version of rwkvctl
                ray.cloudpickle.register_pickle_by_value(module)
            found = of_nodes(ray, request)
            if request.get("in_job"):
                found["tracking"] = tracking.look(request["tracking_uri"])
            return found
        finally:
            ray.shutdown()


def of_nodes(ray: Any, request: dict[str, Any]) -> Survey:
    everything = sorted(ray.nodes(), key=lambda node: (node["NodeManagerHostname"], node["NodeID"]))
    alive = {node["NodeID"]: node for node in everything if node["Alive"]}
    head = next((n["NodeManagerAddress"] for n in alive.values() if "node:__internal_head__" in n["Resources"]), None)
    places, own = request["places"], {node: f"{request['name']}-{node[:12]}" for node in alive}
    ask = Questions(ray, alive, request["seconds"])
    told = ask(facts.facts, lambda _: (places, head))
    answering = [node for node in alive if "answer" in told[node]]
    storage = places["storage"]
    written = ask(facts.attempt, lambda node: (storage, "write", [own[node]]), answering)
    there = [request["first"]] * bool(request.get("first"))
    there += [own[node] for node in answering if written[node].get("answer") == {}]
    read = ask(facts.attempt, lambda _: (storage, "read", there), answering)
    clocks = ask(facts.clock, lambda _: (), answering)
    ask(facts.attempt, lambda node: (storage, "remove", [own[node]]), answering)
    writer = {file: node for node, file in own.items()}
    nodes = []
    for node, about in alive.items():
        nodes.append(
            {
                "id": node,
                "host": about["NodeManagerHostname"],
                "address": about["NodeManagerAddress"],
                "head": about["NodeManagerAddress"] == head,
                "cpus": about["Resources"].get("CPU", 0),
                "gpus": about["Resources"].get("GPU", 0),
                "facts": told[node].get("answer"),
                "error": told[node].get("error"),
                "unwritten": next(iter(written.get(node, {}).get("answer", {}).values()), None),
                "unread": {writer.get(k): v for k, v in read.get(node, {}).get("answer", {}).items()},
                "clock": clocks.get(node, {}).get("offset"),
            }
        )
    here = {node["NodeManagerAddress"] for node in alive.values()}
    gone = {node["NodeManagerHostname"] for node in everything if node["NodeManagerAddress"] not in here}
    return {"nodes": nodes, "gone": sorted(gone)}


class Questions:
    """Calls a function on every node at once and takes what has come when the time is over."""

    def __init__(self, ray: Any, nodes: dict[str, Any], seconds: float):
        self.ray, self.nodes, self.seconds = ray, nodes, seconds

    def __call__(self, function: Any, arguments: Any, nodes: list[str] | None = None) -> dict[str, dict[str, Any]]:
        """By node, `answer` or `error`; for a clock, `offset` from ours as a pair of seconds: least and most."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        asked: dict[Any, tuple[str, float]] = {}
        remote = self.ray.remote(num_cpus=0, max_retries=0)(function)
        for node in self.nodes if nodes is None else nodes:
            there = NodeAffinitySchedulingStrategy(node, soft=False)
            before = time.time()
            asked[remote.options(scheduling_strategy=there, name="doctor").remote(*arguments(node))] = node, before
        found = {node: {"error": f"does not answer within {self.seconds:g} s"} for node, _ in asked.values()}
        waiting, end = list(asked), time.monotonic() + self.seconds
        while waiting and (left := end - time.monotonic()) > 0:
            done, waiting = self.ray.wait(waiting, timeout=left)
            after = time.time()
            for one in done:
                node, before = asked[one]
                found[node] = self.answer(one, before, after)
        for one in waiting:
            self.ray.cancel(one, force=True)
        return found

    def answer(self, one: Any, before: float, after: float) -> dict[str, Any]:
        try:
            value = self.ray.get(one)
        except Exception as error:
            return {"error": facts.one_line(error)}
        offset = [value - after, value - before] if isinstance(value, float) else None
        return {"answer": value, "offset": offset}


def as_job(request: dict[str, Any]) -> Survey:
    """The same by a job on the cluster's job server, for a machine that is no node. As every job it brings its code."""
    from ray.job_submission import JobSubmissionClient

    logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.ERROR)
    client = JobSubmissionClient(request["address"])
    inner = json.dumps(request | {"address": "auto", "in_job": True})
    job = client.submit_job(
        entrypoint=f"{ship.PYTHON} -m {__spec__.name} {shlex.quote(inner)}",
        runtime_env={
            "py_modules": ship.packages(),
            "excludes": ["__pycache__"],
            "env_vars": ship.secrets() | {"PYTHONSAFEPATH": "1"},
        },
    )
    end = time.monotonic() + request["job_seconds"]
    while not client.get_job_status(job).is_terminal():
        if time.monotonic() > end:
            client.stop_job(job)
            return {"error": f"its job has not ended after {request['job_seconds']:g} s; is the head overloaded?"}
        time.sleep(0.3)
    text = client.get_job_logs(job)
    with contextlib.suppress(RuntimeError):
        client.delete_job(job)
    return parse(text) or {"error": f"its job failed on the head: {last_line(text)}", "on_head": True}


def parse(text: str) -> Survey | None:
    """The line of JSON among everything that a survey has written."""
    for line in text.splitlines():
        if line.startswith(MARK):
            return dict(json.loads(line.removeprefix(MARK)))
    return None


def last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:160] if lines else "no output"


def main() -> None:
    request = json.loads(sys.argv[1])
    send_token_if_there_is_one()
    try:
        found = (as_job if request["address"].startswith("http") else survey)(request)
    except Exception as error:
        found = {"error": facts.one_line(error)}
    print(f"{MARK}{json.dumps(found)}", flush=True)


if __name__ == "__main__":
    main()
