"""A server for as long as it is wanted: replicas by Ray Serve, HTTP by this process.

Ray Serve's own HTTP proxy is left out: it would read an upload as fast as it comes, whatever we take of it, and fail
the requests of a replica that dies. Here those are sent to another one.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from ray import serve
from ray.exceptions import ActorUnavailableError, RayActorError, WorkerCrashedError
from ray.serve.exceptions import DeploymentUnavailableError, ReplicaUnavailableError
from ray.serve.handle import DeploymentHandle

from rwkvctl.base.errors import TransientError
from rwkvctl.base.processes import available_cpus
from rwkvctl.config.specs.jobs import ServeSpec
from rwkvctl.launch.session import ray_session
from rwkvctl.serving.app import Front, Lost
from rwkvctl.serving.listening import bound, http_server
from rwkvctl.serving.replica import Replica, Reply
from rwkvctl.serving.token import check_token

GONE = (RayActorError, ActorUnavailableError, WorkerCrashedError, DeploymentUnavailableError, ReplicaUnavailableError)


class Replicas:
    """The replicas, by Ray Serve's handle to them."""

    def __init__(self, handle: DeploymentHandle):
        self.handle = handle

    async def predict(self, data: bytes, accept: str, seconds: float) -> Reply:
        return Reply(*await self._ask(self.handle.predict, data, accept, seconds))

    async def described(self) -> dict[str, Any]:
        return dict(await self._ask(self.handle.described))

    async def _ask(self, method: Any, *arguments: Any) -> Any:
        answer = method.remote(*arguments)
        try:
            return await answer
        except asyncio.CancelledError:
            answer.cancel()
            raise
        except GONE as error:
            raise Lost(type(error).__name__) from None


def run(spec: ServeSpec, token: str | None, say: Callable[[str], None] = print) -> None:
    """Serve until this process is interrupted. UserError where the model or the address is not to be had."""
    check_token(token, spec.host)
    listening = bound(spec.host, spec.port)
    os.environ.setdefault("RAY_SERVE_ENABLE_TASK_EVENTS", "0")
    with ray_session(spec.cluster, cpus=max(available_cpus(), spec.replicas)), replicas(spec) as handle:
        asyncio.run(answer(spec, handle, token, listening, say))


@contextmanager
def replicas(spec: ServeSpec) -> Iterator[DeploymentHandle]:
    """The deployment, when all of its replicas have loaded the model. It has no way in but this process."""
    for name in ("ray.serve", "ray"):
        logging.getLogger(name).setLevel(logging.ERROR)
    alone = spec.cluster.address is None
    threads = threads_of(spec.replicas) if alone else 0
    name = spec.name or "rwkvctl"
    deployment = serve.deployment(
        name="model",
        num_replicas=spec.replicas,
        max_ongoing_requests=2 * spec.at_once,
        ray_actor_options=resources(alone),
        health_check_period_s=5,
        graceful_shutdown_timeout_s=5,
        max_constructor_retry_count=2,
    )(Replica)
    serve.start(proxy_location="Disabled", logging_config={"log_level": "WARNING", "enable_access_log": False})
    try:
        yield started(deployment.bind(spec.model_dump(mode="json", by_alias=True), threads), name)
    finally:
        if not alone:  # where others may serve too; a Ray of our own ends with us
            serve.delete(name)


def threads_of(replicas: int) -> int:
    """CPUs of a replica on this machine: those that a prediction would take, shared out. Ray would give each one."""
    stated = os.environ.get("OMP_NUM_THREADS", "")
    return int(stated) if stated.isdigit() and int(stated) else max(1, available_cpus() // replicas)


def started(application: Any, name: str) -> DeploymentHandle:
    """TransientError where the replicas do not come up: what the model lacks has been looked at before."""
    try:
        return serve.run(application, name=name, route_prefix=None)
    except RuntimeError as error:
        raise TransientError(f"the model's processes did not come up ({' '.join(str(error).split())[:300]})") from error


def resources(alone: bool) -> dict[str, Any]:
    """What Ray reserves for a replica: a GPU where there is one."""
    import ray

    gpus = ray.cluster_resources().get("GPU", 0)
    return {"num_cpus": 0.5 if alone else 1, "num_gpus": 1 if gpus else 0}


async def answer(
    spec: ServeSpec, handle: DeploymentHandle, token: str | None, listening: socket.socket, say: Callable[[str], None]
) -> None:
    """HTTP, until the process is told to end; then what has begun is ended first."""
    front = Front(spec, Replicas(handle), token)
    server = http_server(front.app())
    telling = asyncio.create_task(tell_when_ready(server, front, listening, say))
    try:
        await server.serve([listening])
    finally:
        telling.cancel()
    if not server.started:
        raise TransientError("the server did not come up; its log says more")


async def tell_when_ready(
    server: uvicorn.Server, front: Front, listening: socket.socket, say: Callable[[str], None]
) -> None:
    while not server.started:
        await asyncio.sleep(0.05)
    host, port = listening.getsockname()[:2]
    place = f"[{host}]" if ":" in host else host
    say(f"serving {front.spec.model}, version {front.about['version']}, at http://{place}:{port} (Ctrl-C ends it)")
