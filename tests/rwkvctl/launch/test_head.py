"""The head of a cluster ends, or another one comes up in its place; it is a gRPC server that says who it is."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from rwkvctl.launch import head

PATIENCE = 300.0


class Gcs:
    """Answers with its cluster's id on a port that it keeps."""

    def __init__(self, port: int = 0):
        import grpc
        from ray.core.generated import gcs_service_pb2

        self.messages: Any = gcs_service_pb2
        self.cluster = b"one"
        answer = grpc.unary_unary_rpc_method_handler(
            self.answer,
            request_deserializer=self.messages.GetClusterIdRequest.FromString,
            response_serializer=self.messages.GetClusterIdReply.SerializeToString,
        )
        self.pool = ThreadPoolExecutor(2)
        self.server = grpc.server(self.pool)
        service = grpc.method_handlers_generic_handler("ray.rpc.NodeInfoGcsService", {"GetClusterId": answer})
        self.server.add_generic_rpc_handlers([service])
        self.port = self.server.add_insecure_port(f"127.0.0.1:{port}")
        self.server.start()

    def answer(self, request: Any, context: Any) -> Any:
        return self.messages.GetClusterIdReply(cluster_id=self.cluster)

    def stop(self) -> None:
        self.server.stop(None).wait()
        self.pool.shutdown()


@pytest.fixture
def gcs() -> Iterator[Gcs]:
    made = Gcs()
    yield made
    made.stop()


def wait_for(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_another_cluster_in_its_place(gcs: Gcs):
    with head.watched(f"127.0.0.1:{gcs.port}"):
        head.look()
        assert not head.is_gone()
        gcs.cluster = b"two"
        with pytest.raises(head.HeadLost, match=r"^the head of the cluster \(127.0.0.1:\d+\) has been started anew"):
            head.look()
        with pytest.raises(head.HeadLost):
            head.check()
        assert head.is_gone()
    head.check()


def test_no_answer(gcs: Gcs, monkeypatch: pytest.MonkeyPatch):
    with head.watched(f"127.0.0.1:{gcs.port}"):
        head.look()
        gcs.stop()
        monkeypatch.setattr(head, "ANSWERS_WITHIN", 0.2)
        with pytest.raises(head.HeadLost, match=r"has not answered for 0 s$"):
            head.look()


def test_a_process_that_hangs_in_ray_is_ended(
    gcs: Gcs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(head, "LOOKED_AT_EVERY", 0.05)
    monkeypatch.setattr(head, "ENDS_WITHIN", 0.05)
    codes: list[int] = []
    ended = threading.Event()
    monkeypatch.setattr(os, "_exit", lambda code: (codes.append(code), ended.set()))
    with head.watched(f"127.0.0.1:{gcs.port}"):
        head.look()
        gcs.cluster = b"two"
        wait_for(ended.is_set)
    assert codes == [75]
    assert capsys.readouterr().err.startswith("failed: the head of the cluster (127.0.0.1:")


def test_without_a_cluster_nothing_is_watched():
    before = threading.active_count()
    with head.watched(None):
        head.look()
        assert not head.is_gone()
        assert threading.active_count() == before
