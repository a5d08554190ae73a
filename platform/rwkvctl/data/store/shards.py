"""Shards as files of this machine: those of a folder where they lie, those of an object store in a cache.

Every process of the machine shares the cache. A shard is downloaded once, under a lock, compared with the manifest's
SHA-256 and only then given its name; the longest unused ones make room. Whoever has a shard open keeps reading it,
deleted or not.
"""

from __future__ import annotations

import bisect
import contextlib
import itertools
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from rwkvctl.base import files
from rwkvctl.base.errors import UserError
from rwkvctl.config import settings
from rwkvctl.data.store import bucket
from rwkvctl.data.store.schema import Shard

T = TypeVar("T")

AT_ONCE = 4
"""Downloads at a time: a shard group."""


@dataclass(frozen=True)
class ShardFiles:
    """The shards of a data set. `root` is their folder on this machine, `uri` the place they are fetched from, `limit`
    the bytes that all fetched shards may take: those below the parent of `root`, one folder a data set."""

    root: Path
    shards: Sequence[Shard]
    uri: str | None = None
    limit: int = 0

    def name(self, number: int) -> str:
        """What to call a shard in a message."""
        return f"{self.uri or self.root}/{self.shards[number].name}"

    def advice(self, number: int) -> str:
        """What to do when a shard's content is wrong."""
        if self.uri:
            return f"delete its copy {self.root / self.shards[number].name}"
        return "copy the shard again or prepare the data set again"

    def open(self, number: int) -> int:
        """A descriptor for reading. UserError when the shard is not there, or not the one that the manifest means."""
        while True:
            try:
                return os.open(self.path(number), os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                if self.uri and isinstance(error, FileNotFoundError):  # it made room for another just now
                    continue
                raise UserError(
                    f"{self.name(number)}: cannot be read ({error.strerror}); copy the shard back or prepare again"
                ) from error

    def path(self, number: int) -> Path:
        """The shard's file; one of an object store is fetched first, unless it is here already."""
        shard = self.shards[number]
        path = self.root / shard.name
        if self.uri is None:
            return path
        if mark_used(path):
            return path
        with files.locked(path):
            if not path.exists():
                _fetch(f"{self.uri}/{shard.name}", path, shard, self.limit)
        return path

    def check_room(self, group: int) -> None:
        """UserError when the cache cannot hold two groups of shards: the one that is read and the next."""
        largest = sum(sorted((shard.bytes for shard in self.shards), reverse=True)[: 2 * group])
        if self.uri and largest > self.limit:
            raise UserError(
                f"data {self.uri}: needs a cache of {largest / 1e9:.1f} GB, two groups of {group} shards, and cache_gb "
                f"is {self.limit / 1e9:g}: rwkvctl config set cache_gb {-(-largest // 10**9)}"
            )


def cache_root() -> Path:
    """Where fetched shards lie, one folder a data set."""
    return Path(settings.load().cache_dir) / "shards"


def mark_used(path: Path) -> bool:
    """Note in the time of access, which file systems do not keep themselves, that a file is used; False: not here."""
    try:
        os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))
    except PermissionError:  # somebody else's file
        return True
    except OSError:
        return False
    return True


def _fetch(uri: str, path: Path, shard: Shard, limit: int) -> None:
    part, cache = path.with_name(f".{path.name}.part"), path.parent.parent
    try:
        make_room(cache, shard.bytes, limit)
        bucket.download(uri, part)
        if part.stat().st_size != shard.bytes or files.sha256_file(part) != shard.sha256:
            raise UserError(f"{uri}: is not the shard that the manifest describes (SHA-256 differs); upload it again")
        part.replace(path)
        make_room(cache, 0, limit)  # others came meanwhile
    except OSError as error:
        raise UserError(
            f"{uri}: cannot be kept in {path.parent} ({error.strerror}); "
            "choose another place: rwkvctl config set cache_dir FOLDER"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def make_room(cache: Path, size: int, limit: int, pattern: str = "*/*.tar") -> None:
    """Delete the longest unused files of the cache, by default shards, until `size` bytes more are within its limit."""
    with files.locked(cache / "room"):
        kept = sorted((status.st_atime_ns, status.st_size, path) for path, status in _files_below(cache, pattern))
        excess = sum(entry[1] for entry in kept) + size - limit
        for _, freed, path in kept:
            if excess <= 0:
                return
            path.unlink(missing_ok=True)
            excess -= freed


def _files_below(cache: Path, pattern: str) -> Iterator[tuple[Path, os.stat_result]]:
    for path in cache.glob(pattern):
        with contextlib.suppress(FileNotFoundError):  # another process makes room, too
            yield path, path.stat()


def fetched_ahead(
    batches: Iterator[T], batch: int, begin: int, groups: Sequence[tuple[int, list[int]]], shards: ShardFiles
) -> Iterator[T]:
    """The batches; while those of one group of shards are used, the shards of the next are downloaded.

    groups: (number of samples before it, its shards), one after the other; begin: samples that were used before.
    A download that fails is left to whoever needs the shard: it fails there again, with its reason.
    """
    starts = [start for start, _ in groups]
    asked = max(0, bisect.bisect_right(starts, begin) - 1)
    pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="shards")
    try:
        for used in itertools.count(begin, batch):
            wanted = bisect.bisect_right(starts, used) + 1
            for number in itertools.chain.from_iterable(numbers for _, numbers in groups[asked:wanted]):
                pool.submit(shards.path, number)
            asked = max(asked, wanted)
            item = next(batches, None)
            if item is None:
                return
            yield item
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
