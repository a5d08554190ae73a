"""A run's journal in a store: segments that lie end to end, `journal/<offset of the first byte>.jsonl`.

A store cannot append. The last segment is written again with more lines until it is large; its ETag is the condition,
so that of two processes that write to one journal the second is refused, however late its request arrives.
"""

from __future__ import annotations

import os
from pathlib import Path

from rwkvctl.base.files import locked
from rwkvctl.runs import mirror
from rwkvctl.runs.mirror import Mirror
from rwkvctl.runs.objects import Entry, Taken

FOLDER = "journal/"
SEGMENT = 256 << 10
"""Bytes from which a new segment is begun."""


def name_of(offset: int) -> str:
    return f"{FOLDER}{offset:016d}.jsonl"


def offset_of(name: str) -> int:
    return int(name.removeprefix(FOLDER).removesuffix(".jsonl"))


class StoredJournal:
    """The journal in a run's folder, and its segments."""

    def __init__(self, mirror: Mirror):
        self.objects, self.path = mirror.objects, mirror.folder / "journal.jsonl"
        self.segments: dict[int, Entry] | None = None

    def list(self) -> int:
        """Look at the segments; returns how many bytes they are together."""
        found = {offset_of(name): entry for name, entry in self.objects.entries(FOLDER).items()}
        self.segments = {}
        end = 0
        while end in found:
            self.segments[end] = found[end]
            end += found[end].size
        return end

    def pull(self) -> None:
        """Append what the store has and this machine has not."""
        end = self.list()
        assert self.segments is not None
        with locked(self.path):
            here = size_of(self.path)
            if here >= end:
                return
            with self.path.open("r+b" if here else "wb") as file:
                for offset, entry in self.segments.items():
                    if offset + entry.size > here:
                        file.seek(here)
                        file.write(self._bytes(offset, here - offset))
                        here = file.tell()
                file.flush()
                os.fsync(file.fileno())

    def push(self) -> int:
        """Send the whole lines that the store has not; returns their bytes.

        Raises Taken where another process has written to the store's journal.
        """
        if self.segments is None:
            self.list()
        assert self.segments is not None
        sent = 0
        while True:
            last = max(self.segments, default=0)
            entry = self.segments.get(last)
            end = last + (entry.size if entry else 0)
            if entry is not None and entry.size >= SEGMENT:
                last, entry = end, None
            content = whole_lines(self.path, last, SEGMENT)
            if last + len(content) <= end:
                return sent
            self._write(last, entry, content)
            sent += last + len(content) - end

    def relation(self) -> int | None:
        """How many bytes this machine is ahead of the store (below 0: behind); None where they tell another story."""
        end, here = self.list(), size_of(self.path)
        assert self.segments is not None
        for offset in sorted(self.segments, reverse=True):
            if offset < here:  # the times in its lines tell it from any other
                with self.path.open("rb") as file:
                    file.seek(offset)
                    own = file.read(self.segments[offset].size)
                if not self._bytes(offset).startswith(own):
                    return None
                break
        return here - end

    def _write(self, offset: int, before: Entry | None, content: bytes) -> None:
        assert self.segments is not None
        condition = {"IfMatch": before.etag} if before is not None else {"IfNoneMatch": "*"}
        try:
            etag = self.objects.write(name_of(offset), content, **condition)
        except Taken:
            there = self.objects.read(name_of(offset))
            if there is None or there[0] != content:
                self.segments = None
                raise
            etag = there[1]  # our own write, whose answer was lost
        self.segments[offset] = Entry(len(content), etag, 0.0)

    def _bytes(self, offset: int, start: int = 0) -> bytes:
        found = self.objects.read(name_of(offset), max(0, start))
        if found is None:
            raise Taken(name_of(offset))
        return found[0]


def refresh(run_dir: Path) -> None:
    """Before somebody looks at a run of a store: fetch what it says about itself, and its journal."""
    store = mirror.of(run_dir)
    if store is not None:
        store.look()
        StoredJournal(store).pull()


def size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def whole_lines(path: Path, offset: int, least: int) -> bytes:
    """From an offset on the lines that have their end: as many as fill `least` bytes, or all."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            content = file.read(least)
            content += file.readline() if len(content) == least and not content.endswith(b"\n") else b""
    except FileNotFoundError:
        return b""
    return content[: content.rfind(b"\n") + 1]
