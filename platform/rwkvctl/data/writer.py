"""Shards: tar files of whole samples, the same bytes for the same samples, each with its byte index."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from rwkvctl import files
from rwkvctl.data import index


@dataclass(frozen=True)
class Limits:
    """When the next shard begins."""

    samples: int = 512
    bytes: int = 256 << 20


class ShardWriter:
    """Writes the samples of one part to `<part>-000000.tar`, `<part>-000001.tar`, ... in a folder.

    Use it as a context manager; `.shards` then holds one manifest record a shard. A shard appears under its name
    only when it is whole. A sample larger than the limit gets a shard of its own.
    """

    def __init__(self, folder: Path, part: str, limits: Limits):
        self.shards: list[dict[str, Any]] = []
        self._folder, self._part, self._limits = folder, part, limits
        self._open: AbstractContextManager[BinaryIO] | None = None
        self._tar: Any = None
        self._keys: list[str] = []
        self._bytes = 0

    def __enter__(self) -> ShardWriter:
        return self

    def add(self, key: str, members: dict[str, bytes]) -> None:
        """Append a sample; `members` maps extensions (`jpg`, `mask.png`, `json`, ...) to bytes."""
        assert index.KEY.fullmatch(key), key
        assert members, key
        assert index.MEMBERS.issuperset(members), sorted(members)
        size = sum(map(len, members.values()))
        if self._keys and (len(self._keys) >= self._limits.samples or self._bytes + size > self._limits.bytes):
            self._finish_shard()
        if self._tar is None:
            self._start_shard()
        self._tar.write({"__key__": key, **members})
        self._keys.append(key)
        self._bytes += size

    def _start_shard(self) -> None:
        import webdataset  # 2 s

        self._open = files.atomic_open(self._folder / self._name())
        # Without these the bytes would hold the time of writing and "bigdata" as the owner.
        self._tar = webdataset.TarWriter(
            self._open.__enter__(), encoder=False, mtime=0, user="", group="", mode=0o444, compress=False
        )

    def _name(self) -> str:
        return f"{self._part}-{len(self.shards):06d}.tar"

    def _finish_shard(self) -> None:
        assert self._open is not None
        self._tar.close()
        self._open.__exit__(None, None, None)
        shard = self._folder / self._name()
        idx = index.encode(index.entries_of_tar(shard))  # what the file holds, not what it was meant to hold
        files.write_bytes(self._folder / "index" / f"{shard.stem}.idx", idx)
        self.shards.append(
            {
                "name": shard.name,
                "bytes": shard.stat().st_size,
                "sha256": files.sha256_file(shard),
                "index_sha256": files.sha256_file(self._folder / "index" / f"{shard.stem}.idx"),
                "n": len(self._keys),
                "first": self._keys[0],
                "last": self._keys[-1],
            }
        )
        self._open, self._tar, self._keys, self._bytes = None, None, [], 0

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._tar is None:
            return
        if kind is None:
            self._finish_shard()
        else:
            self._open.__exit__(kind, error, trace)  # type: ignore[union-attr]
