"""How much a replica holds in memory at once: requests wait for room in the order in which they came."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LOOK_EVERY = 0.2
"""Seconds between two looks at whether a request that waits is still wanted."""


class Room:
    """So many voxels. A request that comes after one that still waits does not overtake it."""

    def __init__(self, size: int):
        self.size = self.free = size
        self._changed = threading.Condition()
        self._line: deque[object] = deque()

    @contextmanager
    def taken(self, voxels: int, check: Callable[[], None]) -> Iterator[None]:
        """Room for so many voxels, no more than there is in all; `check` raises where nobody waits any longer."""
        voxels = min(voxels, self.size)
        ticket = object()
        with self._changed:
            self._line.append(ticket)
            try:
                while self._line[0] is not ticket or self.free < voxels:
                    self._changed.wait(LOOK_EVERY)
                    check()
                self.free -= voxels
            finally:
                self._line.remove(ticket)
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self.free += voxels
                self._changed.notify_all()
