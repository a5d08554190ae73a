"""The byte index: where in which shard every member of every sample lies, and the CRC-32 of its bytes.

One file a shard, `index/<shard>.idx`, JSON lines `{"key": ..., "m": {"jpg": [offset, size, crc], ...}}`. In memory it
is a few arrays, not objects: 1.3 million samples take about 150 MB. Reading that many lines takes most of a minute, so
the arrays of a large data set are kept in the cache as one table, which all processes of a machine map and share.
"""

from __future__ import annotations

import json
import re
import tarfile
import unicodedata
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from rwkvctl.base.errors import UserError
from rwkvctl.data.store.mapped import Kept

Place = tuple[int, int, int]
"""Offset of a member in its shard, its size, the CRC-32 of its bytes."""

MEMBERS = frozenset({"jpg", "png", "mask.png", "inst.png", "image.npy", "mask.npy", "cls", "json"})
"""The only members that are ever read. Nothing here can run code (no pickle, no torch)."""

MAX_MEMBER_BYTES = 1 << 30

MOST_KEY_BYTES = 200
"""Of a key in UTF-8: with an extension it is a file name on any file system."""

_ASCII_KEY = re.compile(r"[A-Za-z0-9_-]{1,200}")


def is_key(text: str) -> bool:
    """Whether a sample may be called so: letters, marks and digits of any script, `_` and `-`. No dot, since it ends
    a key in WebDataset; no separator, space, control or formatting character."""
    if text.isascii():
        return _ASCII_KEY.fullmatch(text) is not None
    return len(text.encode(errors="replace")) <= MOST_KEY_BYTES and all(map(is_key_letter, text))


def is_key_letter(character: str) -> bool:
    """Whether a key may have this character."""
    if character.isascii():
        return character.isalnum() or character in "_-"
    return unicodedata.category(character)[0] in "LMN"


def _encoded(keys: Sequence[str]) -> NDArray[np.bytes_]:
    return np.array([key.encode() for key in keys], dtype=np.bytes_)


@dataclass(frozen=True)
class Index:
    """Samples in shard order; row i is one sample.

    keys: (N,) UTF-8 bytes; shard: (N,) int32 shard number;
    members: extension -> (N, 3) int64 of offset, size and CRC-32, -1 where a sample has no such member;
    kept: the table in the cache that these are views of, which is all that is pickled then.
    """

    keys: NDArray[np.bytes_]
    shard: NDArray[np.int32]
    members: dict[str, NDArray[np.int64]]
    kept: Kept | None = None

    def __reduce__(self) -> Any:
        return (of_table, (self.kept,)) if self.kept else (Index, (self.keys, self.shard, self.members))

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def is_mapped(self) -> bool:
        """Whether it costs a process nothing to have the whole of it."""
        return self.kept is not None and self.kept.path is not None

    def rows(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """The rows of `ids`, in their order. KeyError for the first one that is not here."""
        if not ids:
            return np.zeros(0, np.int64)
        wanted = _encoded(ids)
        by_key = self.kept.array["by_key"] if self.kept else np.argsort(self.keys, kind="stable")
        found = by_key[np.minimum(np.searchsorted(self.keys, wanted, sorter=by_key), len(self.keys) - 1)]
        absent = np.flatnonzero(self.keys[found] != wanted)
        if len(absent):
            raise KeyError(ids[int(absent[0])])
        return found

    def take(self, rows: NDArray[np.int64]) -> Index:
        """The index of these rows only, in their order."""
        return Index(self.keys[rows], self.shard[rows], {ext: where[rows] for ext, where in self.members.items()})


def entries_of_tar(shard: Path) -> Iterator[tuple[str, dict[str, Place]]]:
    """(key, {extension: place}) of every sample of a tar.

    ValueError for a member that a shard of ours never has (a link, a device, an odd path, an unknown extension) and
    for a tar that ends too early.
    """
    key, members = "", dict[str, Place]()
    with tarfile.open(shard, "r:") as tar, shard.open("rb") as content:
        for member in tar:
            name, _, extension = member.name.partition(".")
            if not member.isreg() or not is_key(name) or extension not in MEMBERS:
                raise ValueError(f"{shard.name} has a member {member.name!r}, which does not belong in a shard")
            if name != key:
                if members:
                    yield key, members
                key, members = name, {}
            members[extension] = (member.offset_data, member.size, _crc(content, member))
    if members:
        yield key, members


def _crc(content: BinaryIO, member: tarfile.TarInfo) -> int:
    """CRC-32 of a member, a megabyte at a time: a volume is not held in memory."""
    content.seek(member.offset_data)
    crc, left = 0, member.size
    while left:
        block = content.read(min(left, 1 << 20))
        if not block:
            raise ValueError(f"the tar ends within {member.name}")
        crc, left = zlib.crc32(block, crc), left - len(block)
    return crc


def encode(entries: Iterable[tuple[str, dict[str, Place]]]) -> bytes:
    """The content of an index file."""
    lines = (json.dumps({"key": key, "m": members}, sort_keys=True, separators=(",", ":")) for key, members in entries)
    return "".join(line + "\n" for line in lines).encode()


def load(files: Sequence[tuple[str, bytes, int]]) -> Index:
    """The index of a data set from (file name, content, bytes of its shard), one a shard.

    Whatever is not exactly as `encode` writes it is refused with a UserError that names the file and the line.
    """
    tables = [_load_file(*file) for file in files]
    keys = np.concatenate([np.zeros(0, "S1"), *(keys for keys, _ in tables)])
    ordered = np.sort(keys)
    twice = ordered[1:][ordered[1:] == ordered[:-1]]
    if len(twice):
        raise UserError(
            f"{files[0][0]}: sample {twice[0].decode()!r} is in the index twice; prepare the data set again"
        )
    shard = np.repeat(np.arange(len(tables), dtype=np.int32), [len(keys) for keys, _ in tables])
    extensions = sorted({extension for _, members in tables for extension in members})
    members = {
        extension: np.concatenate([own.get(extension, np.full((len(keys), 3), -1)) for keys, own in tables])
        for extension in extensions
    }
    return Index(keys, shard, members)


def _load_file(name: str, content: bytes, shard_bytes: int) -> tuple[NDArray[np.bytes_], dict[str, NDArray[np.int64]]]:
    lines = content.splitlines()
    keys: list[str] = []
    members: dict[str, NDArray[np.int64]] = {}
    for row, line in enumerate(lines):
        try:
            key, places = _parse_line(line, shard_bytes)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{name} line {row + 1}: {error}; prepare the data set again") from error
        keys.append(key)
        for extension, place in places.items():
            if extension not in members:
                members[extension] = np.full((len(lines), 3), -1, np.int64)
            members[extension][row] = place
    return _encoded(keys), members


def _parse_line(line: bytes, shard_bytes: int) -> tuple[str, dict[str, Place]]:
    value: Any = json.loads(line)
    if not isinstance(value, dict) or not isinstance(value.get("m"), dict) or not value["m"]:
        raise ValueError("not an index entry")
    key = value.get("key")
    if not isinstance(key, str) or not is_key(key):
        raise ValueError(f"bad key {key!r}")
    members = {}
    for extension, place in value["m"].items():
        if extension not in MEMBERS:
            raise ValueError(f"member {extension!r} of {key} is not one that is read ({', '.join(sorted(MEMBERS))})")
        if not (isinstance(place, list) and len(place) == 3 and all(type(number) is int for number in place)):
            raise ValueError(f"{key}.{extension}: place must be [offset, size, crc]")
        offset, size, crc = place
        if offset < 0 or size < 0 or size > MAX_MEMBER_BYTES or offset + size > shard_bytes:
            raise ValueError(
                f"{key}.{extension}: bytes {offset}..{offset + size} lie outside the shard of {shard_bytes} bytes"
            )
        if not 0 <= crc < 1 << 32:
            raise ValueError(f"{key}.{extension}: {crc} is no CRC-32")
        members[extension] = (offset, size, crc)
    return key, members


# Cache --------------------------------------------------------------------------------------------------------------

CACHED_FROM = 20_000
"""Samples from which the table is kept: fewer are read from the lines in less than a second."""

TABLE = "index-1"
"""Part of the name of its file; raised when the fields change."""


def table(index: Index) -> NDArray[Any]:
    """An index as one array of records (N,), so that what is known of a sample lies in one place; `by_key` are the rows
    in the order of their keys."""
    fields: list[Any] = [("keys", index.keys.dtype), ("shard", np.int32), ("by_key", np.int32)]
    fields += [(f"members.{extension}", np.int64, (3,)) for extension in index.members]
    records = np.zeros(len(index), np.dtype(fields, align=True))
    records["keys"], records["shard"] = index.keys, index.shard
    records["by_key"] = np.argsort(index.keys, kind="stable")
    for extension, where in index.members.items():
        records[f"members.{extension}"] = where
    return records


def of_table(kept: Kept) -> Index:
    """The index whose table is kept: its arrays are views of it."""
    members = {name.removeprefix("members."): kept.array[name] for name in kept.array.dtype.names or () if "." in name}
    return Index(kept.array["keys"], kept.array["shard"], members, kept)
