"""Shards: tar files of whole samples, the same bytes for the same samples, each with its byte index."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rwkvctl.base import files
from rwkvctl.data.store import index

AS_IS: dict[str, Any] = {"encoder": False, "mtime": 0, "user": "", "group": "", "mode": 0o444, "compress": False}
"""Bytes are written as they are, and nothing of the machine or the time of day."""


@dataclass(frozen=True)
class Limits:
    """When the next shard begins."""

    samples: int = 512
    bytes: int = 256 << 20


def write_shard(folder: Path, stem: str, samples: Iterable[tuple[str, dict[str, bytes]]]) -> dict[str, Any]:
    """Write `<stem>.tar` and `index/<stem>.idx`, and return the shard's record for the manifest.

    `samples` gives (key, extension -> bytes), extensions being those of `index.MEMBERS`. At no time is more than one
    sample in memory. The shard appears under its name when it is whole, and not at all if `samples` raises.
    """
    shard = folder / f"{stem}.tar"
    import webdataset  # takes seconds

    with files.atomic_open(shard) as stream, webdataset.TarWriter(stream, **AS_IS) as tar:
        for key, members in samples:
            assert index.is_key(key), key
            assert members, key
            assert index.MEMBERS.issuperset(members), sorted(members)
            tar.write({"__key__": key, **members})
    return record(shard)


def adopt_shard(folder: Path, stem: str, shard: Path, samples: Iterable[object]) -> dict[str, Any]:
    """Take over a shard that somebody else wrote, byte for byte, once its `samples` are checked.

    It becomes a second name of the same file where the file system allows that, and a copy elsewhere.
    """
    for _ in samples:
        pass
    own = folder / f"{stem}.tar"
    own.unlink(missing_ok=True)
    try:
        own.hardlink_to(shard)
    except OSError:
        with files.atomic_open(own) as stream, shard.open("rb") as content:
            shutil.copyfileobj(content, stream, 1 << 20)
    return record(own)


def record(shard: Path) -> dict[str, Any]:
    """Index a finished shard (from what the file holds, not what it was meant to hold); its manifest record."""
    entries = list(index.entries_of_tar(shard))
    idx = shard.parent / "index" / f"{shard.stem}.idx"
    files.write_bytes(idx, index.encode(entries))
    return {
        "name": shard.name,
        "bytes": shard.stat().st_size,
        "sha256": files.sha256_file(shard),
        "index_sha256": files.sha256_file(idx),
        "n": len(entries),
        "first": entries[0][0],
        "last": entries[-1][0],
    }
