"""A run's lease in an object store: taken, kept and given back by writes on the condition that nobody else has written.

Every beat writes the object anew, so that its ETag changes; a beat that is refused says that the lease is another's.
"""

from __future__ import annotations

import json
import threading
from typing import Any

from rwkvctl.runs.objects import Objects, Taken


class Contended(Exception):
    """Another process took the lease between the look at it and the write."""


class LeaseObject:
    """The lease as an object."""

    pause = 1.0
    """Seconds between two looks at it, each of which is a request."""

    def __init__(self, objects: Objects, key: str):
        self.objects, self.key = objects, key
        self._etag = ""
        self._holder: dict[str, Any] | None = None
        self._beats = 0
        self._lock = threading.Lock()

    def read(self) -> dict[str, Any] | None:
        """The holder, or None where there is none or its object is not one of ours."""
        with self._lock:
            return self._look()

    def known(self) -> dict[str, Any] | None:
        """The holder that was last seen."""
        return self._holder

    def last_beat(self) -> object:
        return self._etag

    def take(self, holder: dict[str, Any]) -> None:
        """Take the place of what was last seen; Contended where another did."""
        with self._lock:
            try:
                self._write(holder)
            except Taken:
                if self._look() != holder:  # else it was our own write, whose answer was lost
                    raise Contended(self.key) from None

    def beat(self) -> None:
        """Say that the holder lives, if the lease is still its own."""
        with self._lock:
            if self._holder is None:
                return
            self._beats += 1
            holder = self._holder | {"beats": self._beats}
            try:
                self._write(holder)
            except Taken:
                self._look()

    def remove(self) -> None:
        with self._lock:
            self.objects.delete([self.key])
            self._etag, self._holder = "", None

    def _look(self) -> dict[str, Any] | None:
        found = self.objects.read(self.key)
        content, self._etag = found if found is not None else (b"", "")
        self._holder = holder_of(content)
        return self._holder

    def _write(self, holder: dict[str, Any]) -> None:
        condition = {"IfMatch": self._etag} if self._etag else {"IfNoneMatch": "*"}
        self._etag = self.objects.write(self.key, json.dumps(holder).encode(), **condition)
        self._holder = holder


def holder_of(content: bytes) -> dict[str, Any] | None:
    """What a lease says of its holder, or None where it is not one of ours."""
    try:
        holder = json.loads(content)
    except ValueError:
        return None
    return holder if isinstance(holder, dict) and {"token", "host", "pid", "started"} <= holder.keys() else None
