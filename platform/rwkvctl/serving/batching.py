"""Requests that are segmented at the same time share the network's batches.

The first of the threads that want the network runs it; those that come meanwhile wait, and the next of them takes all
that have come with it. So nothing is waited for while the network is idle, and a large scan, which comes in parts,
holds up nobody for longer than one batch.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(eq=False)
class Part:
    """Slices (B, C, H, W) of one request, and what has become of them."""

    x: Tensor
    logits: Tensor | None = None
    error: Exception | None = None

    @property
    def done(self) -> bool:
        return self.logits is not None or self.error is not None


class Batched(nn.Module):
    """A network whose forward may be called by many threads at once: see this module's docstring.

    Args:
        most: slices of a batch, whatever number of requests they come from; those of one part stay together.
    """

    def __init__(self, network: nn.Module, most: int):
        super().__init__()
        self.network, self.most = network, most
        self.batches = self.slices = 0
        self._waiting: list[Part] = []
        self._queue, self._running = threading.Lock(), threading.Lock()
        self._check = threading.local()

    @contextmanager
    def checked(self, check: Callable[[], None]) -> Iterator[None]:
        """Call `check` before every batch of this thread's; what it raises ends the request."""
        self._check.now = check
        try:
            yield
        finally:
            del self._check.now

    def forward(self, x: Tensor) -> Tensor:
        """(B, classes, H, W) of (B, C, H, W)."""
        check: Callable[[], None] = getattr(self._check, "now", lambda: None)
        check()
        part = Part(x)
        with self._queue:
            self._waiting.append(part)
        with self._running:
            if not part.done:
                try:
                    check()
                except Exception:
                    with self._queue:
                        self._waiting.remove(part)
                    raise
                self._run(self._together(part))
        if part.error is not None:
            raise part.error
        assert part.logits is not None
        return part.logits

    def _together(self, own: Part) -> list[Part]:
        """Take a part from those that wait, and as many of the others, first come first, as go with it."""
        with self._queue:
            parts, slices = [own], len(own.x)
            for part in self._waiting:
                if part is not own and part.x.shape[1:] == own.x.shape[1:] and slices + len(part.x) <= self.most:
                    parts.append(part)
                    slices += len(part.x)
            self._waiting = [part for part in self._waiting if part not in parts]
        return parts

    def _run(self, parts: list[Part]) -> None:
        try:
            with torch.inference_mode():
                x = parts[0].x if len(parts) == 1 else torch.cat([part.x for part in parts])
                logits = self.network(x)
        except Exception as error:
            if len(parts) == 1:
                parts[0].error = error
                return
            for part in parts:  # too much memory together need not be too much for each
                self._run([part])
            return
        self.batches += 1
        self.slices += len(x)
        for part, own in zip(parts, logits.split([len(part.x) for part in parts]), strict=True):
            part.logits = own
