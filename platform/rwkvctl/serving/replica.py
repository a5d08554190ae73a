"""What runs in each process of a server that holds the model: a plain class, which Ray Serve makes a deployment of."""

from __future__ import annotations

import asyncio
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from rwkvctl.config.specs.jobs import ServeSpec
from rwkvctl.serving import media, segment, versions
from rwkvctl.serving.refusals import Refused
from rwkvctl.serving.room import Room


class Reply(NamedTuple):
    """What a replica gives back: an answer with status 200, or a line with another one."""

    status: int
    media: str
    body: bytes
    headers: dict[str, str]
    kind: str = ""
    log: str = ""
    """A traceback, for the server's own log alone."""


class Replica:
    """Holds the model, follows its alias, and answers some requests at once.

    Args:
        fields: the `ServeSpec`, as it is stored.
        threads: CPUs that the network may use; 0 leaves it to torch.
    """

    def __init__(self, fields: dict[str, Any], threads: int = 0):
        import torch

        if threads:
            torch.set_num_threads(threads)
        self.spec = spec = ServeSpec.model_validate(fields)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.room = Room(spec.limits.voxels)
        self.pool = ThreadPoolExecutor(spec.at_once, thread_name_prefix="request")
        exact = self._look()
        self.follower = versions.Follower(exact, self._load(exact), self._look, self._load)
        if versions.FOLLOWED.fullmatch(spec.model):
            self.follower.follow(spec.poll)

    def _look(self) -> str:
        return versions.pinned(self.spec.model, self.spec.tracking.uri or "")

    def _load(self, exact: str) -> versions.Served:
        spec = self.spec
        return versions.load(
            spec.model,
            exact,
            spec.storage or "",
            spec.tracking.uri or "",
            device=self.device,
            batch=spec.batch,
            same_bits=spec.same_bits,
        )

    async def predict(self, data: bytes, accept: str, seconds: float) -> Reply:
        """Segment an upload in at most so many seconds. A caller that cancels this frees its place at the next
        batch."""
        gone = threading.Event()
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self.pool, self.answer, data, accept, time.monotonic() + seconds, gone)
        except asyncio.CancelledError:
            gone.set()
            raise

    def answer(self, data: bytes, accept: str, deadline: float, gone: threading.Event) -> Reply:
        """In a thread of the pool."""
        served, limits = self.follower.served, self.spec.limits
        check = segment.stopped(deadline, limits.seconds, gone.is_set)
        try:
            with served.network.checked(check):
                check()
                made = segment.answer(
                    served.segmenter, served.exact, data, media.wanted(accept), limits, self.room, check
                )
        except Refused as refusal:
            return Reply(refusal.status, media.JSON, refusal.line.encode(), served.headers)
        except Exception:
            line = b"the server failed at this upload; its log says more"
            return Reply(500, media.JSON, line, served.headers, log=traceback.format_exc())
        return Reply(200, made.media, made.body, served.headers, made.kind)

    async def described(self) -> dict[str, Any]:
        """What `/model` and `/metrics` say of this replica."""
        served = self.follower.served
        return {
            "model": served.described() | {"device": self.device, "update_failed": self.follower.problem},
            "batches": served.network.batches,
            "slices": served.network.slices,
        }
