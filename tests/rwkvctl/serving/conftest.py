"""A server without Ray: the routes as they are, on loopback, over one replica in this process."""

from __future__ import annotations

import asyncio
import http.client
import json
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from rwkv_unet import create_model
from rwkvctl.config.specs.jobs import LimitsSpec, ServeSpec
from rwkvctl.data.images import intensity
from rwkvctl.models import bundle
from rwkvctl.serving.app import Front
from rwkvctl.serving.listening import bound, http_server
from rwkvctl.serving.replica import Replica

PATIENCE = 120.0


def save_model(folder: Path, *, ct: bool = False, seed: int = 0) -> Path:
    """With random weights, and a bias with which no class is everywhere the best."""
    torch.manual_seed(seed)
    channels = 1 if ct else 3
    network = create_model("rwkv_unet_xt", num_classes=3, in_channels=channels).eval()
    with torch.no_grad():
        network.head.bias -= network(torch.rand(3, channels, 32, 32)).mean(dim=(0, 2, 3))
    info = bundle.BundleInfo(
        model={"name": "rwkv_unet_xt", "num_classes": 3, "in_channels": channels},
        classes=["background", "liver", "tumour"],
        image_size=32,
        image_kind="float" if ct else "rgb8",
        channels=channels,
        intensity=intensity.rule(-125, 275) if ct else None,
        orientation="itk" if ct else None,
    )
    bundle.save(folder, network.state_dict(), info)
    return folder


@pytest.fixture(scope="session")
def colour_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("colour") / "model")


@pytest.fixture(scope="session")
def ct_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("ct") / "model", ct=True)


@dataclass
class Reply:
    """What a server has answered."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """The line of a refusal, which is JSON, one line, and all that there is."""
        assert self.headers["content-type"] == "application/json", self
        assert self.body.count(b"\n") == 1, self
        found = self.json()
        assert list(found) == ["error"]
        return str(found["error"])


@dataclass
class Served:
    """A server that runs, and what it is asked with."""

    port: int
    front: Front
    replica: Replica
    token: str | None
    headers: dict[str, str] = field(default_factory=dict)

    def ask(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request(method, path, body, self.headers | (headers or {}))
            answer = connection.getresponse()
            return Reply(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def post(self, *files: tuple[str, bytes], accept: str | None = None, **headers: str) -> Reply:
        body, kind = form(*files)
        wanted = {} if accept is None else {"Accept": accept}
        return self.ask("POST", "/predict", body, {"Content-Type": kind} | wanted | headers)


def form(*files: tuple[str, bytes]) -> tuple[bytes, str]:
    """The body of a multipart request, and its content type."""
    boundary = secrets.token_hex(12)
    parts = [
        b'--%b\r\nContent-Disposition: form-data; name="file"; filename="%b"\r\n\r\n%b\r\n'
        % (boundary.encode(), name.encode(), content)
        for name, content in files
    ]
    return b"".join(parts) + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"


@contextmanager
def served(
    model: str, *, token: str | None = None, limits: dict[str, Any] | None = None, **fields: Any
) -> Iterator[Served]:
    spec = ServeSpec(model=model, limits=LimitsSpec(**(limits or {})), **fields)
    replica = Replica(spec.model_dump(mode="json", by_alias=True))
    front = Front(spec, replica, token)
    listening, server = bound("127.0.0.1", 0), http_server(front.app())
    thread = threading.Thread(target=asyncio.run, args=(server.serve([listening]),))
    thread.start()
    try:
        until(lambda: server.started or not thread.is_alive())
        assert server.started
        yield Served(listening.getsockname()[1], front, replica, token)
    finally:
        server.should_exit = True
        thread.join(PATIENCE)
        replica.follower.close()
        replica.pool.shutdown()
        listening.close()


def until(condition: Callable[[], Any], patience: float = PATIENCE) -> Any:
    deadline = time.monotonic() + patience
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited for too long"
        time.sleep(0.02)
    return found
