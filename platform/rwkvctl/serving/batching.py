"""Requests that are segmented at the same time share the network's batches.

The first of the threads that want the network runs it; those that come meanwhile wait, and the next of them takes all
that have come with it. So nothing is waited for while the network is idle, and a large scan, which comes in parts,
holds up nobody for longer than one batch.

A kernel may add numbers up in another order where a batch has another size, which changes last bits and so, once in a
million, a voxel. `useful_sizes` looks for the sizes at which a network gives a slice the bits that it gives it alone,
and is no slower; slices of several requests are put together to these sizes only.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(eq=False)
class Part:
    """Slices (B, C, H, W), or windows (B, C, D, H, W), of one request, and what has become of them."""

    x: Tensor
    logits: Tensor | None = None
    error: Exception | None = None

    @property
    def done(self) -> bool:
        return self.logits is not None or self.error is not None


class Batched(nn.Module):
    """A network whose forward may be called by many threads at once: see this module's docstring.

    Args:
        sizes: of batches that may be made of several parts; a part of another size stays alone.
    """

    def __init__(self, network: nn.Module, sizes: Collection[int]):
        super().__init__()
        self.network, self.sizes = network, frozenset(sizes)
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
        """(B, classes, [D,] H, W) of (B, C, [D,] H, W)."""
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
            parts, slices, fitting = [own], len(own.x), 1
            for part in self._waiting if slices in self.sizes else ():
                same = part.x.shape[1:] == own.x.shape[1:] and len(part.x) in self.sizes
                if part is not own and same and slices + len(part.x) <= max(self.sizes):
                    parts.append(part)
                    slices += len(part.x)
                    if slices in self.sizes:
                        fitting = len(parts)
            parts = parts[:fitting]
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


@torch.inference_mode()
def useful_sizes(network: nn.Module, shape: tuple[int, ...], most: int, *, same_bits: bool) -> frozenset[int]:
    """Of 1, 2, 4, ... `most`, the sizes of batches of (C, H, W) or (C, D, H, W) that take no longer than their slices
    one by one: on a CPU large batches leave its caches. With `same_bits` only those at which every slice has the logits
    that it has alone, to the last bit. Which kernels run is decided by shapes, not by values: noise tells.
    """
    device = next(network.parameters()).device
    x = torch.rand(most, *shape, generator=torch.Generator().manual_seed(0)).to(device)
    logits, single = timed(network, x[:1])
    alone = torch.cat([logits, *(network(x[place : place + 1]).cpu() for place in range(1, most))])
    useful = {1}
    for size in powers_of_two(most):
        logits, seconds = timed(network, x[:size])
        if seconds <= size * single and (not same_bits or torch.equal(logits, alone[:size])):
            useful.add(size)
    return frozenset(useful)


def timed(network: nn.Module, x: Tensor) -> tuple[Tensor, float]:
    """Logits, on the CPU, and the seconds that they take where nothing else disturbs."""
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        logits = network(x).cpu()
        seconds.append(time.perf_counter() - began)
    return logits, min(seconds)


def powers_of_two(most: int) -> list[int]:
    """2, 4, ... and `most`."""
    return sorted({2**exponent for exponent in range(1, most.bit_length())} | ({most} if most > 1 else set()))
