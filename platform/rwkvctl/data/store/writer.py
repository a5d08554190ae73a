"""Shards: tar files of whole samples, the same bytes for the same samples, each with its byte index."""

from __future__ import annotations

import shutil
import tarfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from rwkvctl.base import files
from rwkvctl.data.store import index
from rwkvctl.data.store.index import Place


@dataclass(frozen=True)
class Limits:
    """When the next shard begins."""

    samples: int = 512
    bytes: int = 256 << 20


Entry = tuple[str, dict[str, Place]]
"""A sample's key, and where each of its members lies."""


def write_shard(folder: Path, stem: str, samples: Iterable[tuple[str, dict[str, bytes]]]) -> dict[str, Any]:
    """Write `<stem>.tar` and `index/<stem>.idx`, and return the shard's record for the manifest.

    `samples` gives (key, extension -> bytes), extensions being those of `index.MEMBERS`. At no time is more than one
    sample in memory. The shard appears under its name when it is whole, and not at all if `samples` raises.
    """
    shard = folder / f"{stem}.tar"
    with files.atomic_open(shard) as stream:
        entries = write_tar(stream, samples)
    return record(shard, entries)


def write_tar(stream: BinaryIO, samples: Iterable[tuple[str, Mapping[str, bytes]]]) -> list[Entry]:
    """Write the samples as WebDataset's own writer does (`webdataset.TarWriter` without encoder), byte for byte, and
    return where everything lies. Written with the standard library, because webdataset brings torch along, which takes
    longer to import than a small data set to convert."""
    entries: list[Entry] = []
    offset = 0
    for key, members in samples:
        assert index.is_key(key), key
        assert members, key
        assert index.MEMBERS.issuperset(members), sorted(members)
        places = {}
        for extension in sorted(members):
            data = members[extension]
            header = _header(f"{key}.{extension}", len(data))
            stream.write(header)
            stream.write(data)
            stream.write(bytes(-len(data) % tarfile.BLOCKSIZE))
            offset += len(header)
            places[extension] = offset, len(data), zlib.crc32(data)
            offset += len(data) + -len(data) % tarfile.BLOCKSIZE
        entries.append((key, places))
    end = 2 * tarfile.BLOCKSIZE
    stream.write(bytes(end + -(offset + end) % tarfile.RECORDSIZE))
    return entries


def _header(name: str, size: int) -> bytes:
    """Of a member: nothing of the machine or the time of day. Of a plain name and size it is put together from parts,
    in a fifth of the time that tarfile takes."""
    if not name.isascii() or len(name) > tarfile.LENGTH_NAME or size >= 8**11:
        info = tarfile.TarInfo(name)
        info.size, info.mode = size, _MODE
        return info.tobuf(tarfile.PAX_FORMAT)
    own, octal = name.encode().ljust(tarfile.LENGTH_NAME, b"\0"), b"%011o\0" % size
    checksum = b"%06o\0 " % (_SUM + sum(own) + sum(octal))
    return b"".join((own, _OWNER, octal, _TIME, checksum, _REST))


_MODE = 0o444
_OWNER, _TIME = b"%07o\0%07o\0%07o\0" % (_MODE, 0, 0), b"%011o\0" % 0
_REST = (tarfile.REGTYPE + bytes(tarfile.LENGTH_LINK) + tarfile.POSIX_MAGIC).ljust(356, b"\0")
_SUM = sum(_OWNER) + sum(_TIME) + sum(b" " * 8) + sum(_REST)
"""The checksum is that of the whole header, its own eight bytes counted as spaces."""


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
    return record(own, list(index.entries_of_tar(own)))


def record(shard: Path, entries: list[Entry]) -> dict[str, Any]:
    """Index a finished shard; its record for the manifest."""
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
