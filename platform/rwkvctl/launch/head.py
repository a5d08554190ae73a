"""Whether the head of the connected cluster is still the one that this process has joined.

Without a database of its own a head forgets its cluster when it ends: whatever comes up at its address is a new one,
and the nodes, reservations and workers of the old one are gone. Ray's own calls then wait for a minute and end the
process.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rwkvctl.base.errors import TransientError
from rwkvctl.launch import token

LOOKED_AT_EVERY = 2.0
ANSWERS_WITHIN = 20.0
"""Seconds without an answer after which the head is given up; after 60, Ray ends the process without a word of ours."""
ENDS_WITHIN = 15.0
"""Seconds that this process has to end by itself then: it may be in a call of Ray's that does not come back."""


class HeadLost(TransientError):
    """The cluster that the job runs on is no more."""


class Head:
    """Asks the head every two seconds who it is, in the background.

    Args:
        address: HOST:PORT of its GCS.
    """

    def __init__(self, address: str):
        self.address = address
        self.lost: str | None = None
        """Why it is given up."""
        self._cluster: bytes | None = None
        self._answered = time.monotonic()
        self._ask = threading.Lock()
        self._left = threading.Event()
        threading.Thread(target=self._watch, name="head", daemon=True).start()

    def check(self) -> None:
        """HeadLost where it is known to be."""
        if self.lost is not None:
            raise HeadLost(self.lost)

    def look(self) -> None:
        """HeadLost if it is gone by now; waits for its answer as long as it may take."""
        while not self._left.is_set() and self.lost is None and not self._answers():
            time.sleep(LOOKED_AT_EVERY / 4)
        self.check()

    def leave(self) -> None:
        """Stop asking."""
        self._left.set()

    def _answers(self) -> bool:
        with self._ask:
            try:
                found = cluster_id(self.address)
            except ConnectionError:
                if time.monotonic() - self._answered > ANSWERS_WITHIN:
                    self.lost = f"the head of the cluster ({self.address}) has not answered for {ANSWERS_WITHIN:.0f} s"
                return False
            self._answered = time.monotonic()
            self._cluster = self._cluster or found
            if found != self._cluster:
                self.lost = (
                    f"the head of the cluster ({self.address}) has been started anew, and knows no job of before"
                )
            return True

    def _watch(self) -> None:
        while self.lost is None and not self._left.wait(LOOKED_AT_EVERY):
            self._answers()
        if self.lost is not None and not self._left.wait(ENDS_WITHIN):
            print(f"failed: {self.lost}; the run can be resumed when the cluster is up", file=sys.stderr, flush=True)
            os._exit(TransientError.exit_code)


def cluster_id(address: str) -> bytes:
    """What the GCS at an address calls its cluster. ConnectionError where it does not answer."""
    return bytes(ask(address, "NodeInfo", "GetClusterId").cluster_id)


def ask(address: str, service: str, question: str) -> Any:
    """What the GCS at an address answers, without a client of Ray's between: those end the process, or wait for a
    minute, where the head has been started anew. ConnectionError where it does not answer."""
    import grpc
    from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

    request = getattr(gcs_service_pb2, f"{question}Request")()
    metadata = [(name.lower(), value) for name, value in token.headers().items()]
    with grpc.insecure_channel(address, [("grpc.enable_http_proxy", 0)]) as channel:
        try:
            asked = getattr(getattr(gcs_service_pb2_grpc, f"{service}GcsServiceStub")(channel), question)
            return asked(request, timeout=LOOKED_AT_EVERY * 2, metadata=metadata)
        except grpc.RpcError as error:
            raise ConnectionError(str(error)) from None


_head: Head | None = None


@contextmanager
def watched(address: str | None) -> Iterator[None]:
    """Watch the head of the cluster at an address while the block runs; nobody else's can go away."""
    global _head
    _head = None if address is None else Head(address)
    try:
        yield
    finally:
        if _head is not None:
            _head.leave()
        _head = None


def check() -> None:
    """HeadLost where the head of the connected cluster is known to be gone."""
    if _head is not None:
        _head.check()


def look() -> None:
    """HeadLost where it is gone by now; waits for its answer as long as it may take."""
    if _head is not None:
        _head.look()


def is_gone() -> bool:
    """Whether it is gone by now: what is asked of Ray then does not come back. Waits as `look` does."""
    try:
        look()
    except HeadLost:
        return True
    return False
