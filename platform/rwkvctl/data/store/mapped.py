"""Arrays that lie in a file of the cache and are mapped into memory: all processes of a machine share the same pages.

A file is npy, which `np.load` maps, with the CRC-32 of all its bytes behind the array. Whoever maps it first in a
process compares the CRC; a process that is handed the array maps the very same file again.
"""

from __future__ import annotations

import contextlib
import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from rwkvctl.base import files
from rwkvctl.base.errors import UserError

CRC_BYTES = 4

Identity = tuple[int, int, int, int]
"""Device, inode, size and time of change: a file that was replaced or written to has another."""


@dataclass(frozen=True)
class Kept:
    """An array, read-only, and the file that it is mapped from. Pickled it is the file's name; where the file is gone
    or another by then, the array itself."""

    array: NDArray[Any]
    path: Path | None = None
    identity: Identity | None = None

    def __reduce__(self) -> Any:
        if self.path is not None and identity_of(self.path) == self.identity:
            return _map_again, (self.path, self.identity)
        return Kept, (np.array(self.array),)


def keep(path: Path, make: Callable[[], NDArray[Any]]) -> Kept:
    """What `make` gives, from its file in the cache. One process of a machine writes the file, if it is not there or
    damaged, and the others wait. In memory where it cannot be: on a full or read-only disk, or one without mapping."""
    with files.locked(path):
        kept = find(path)
        if kept is None:
            array = make()
            _write(path, array)
            kept = find(path) or Kept(array)
        return kept


def _write(path: Path, array: NDArray[Any]) -> None:
    """Nothing where the disk takes none."""
    with contextlib.suppress(OSError), files.atomic_open(path) as file:
        checked = _Checked(file)
        np.lib.format.write_array(checked, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
        file.write(checked.crc.to_bytes(CRC_BYTES, "little"))


def find(path: Path) -> Kept | None:
    """The array of a file; None when there is none, it is damaged, or it cannot be mapped."""
    try:
        with path.open("rb") as file:
            if not _is_whole(file):
                return None
            identity = _identity(os.fstat(file.fileno()))
        return _map_again(path, identity)
    except (OSError, ValueError, EOFError, UserError):
        return None


def identity_of(path: Path) -> Identity | None:
    """None when there is no such file."""
    try:
        return _identity(path.stat())
    except OSError:
        return None


def _map_again(path: Path, identity: Identity) -> Kept:
    """UserError unless it is still the file whose CRC was compared."""
    array = None
    with contextlib.suppress(FileNotFoundError):
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    if array is None or identity_of(path) != identity:
        raise UserError(f"{path}: was removed or changed while processes were started on it; start the job again")
    return Kept(array.view(np.ndarray), path, identity)


def _identity(status: os.stat_result) -> Identity:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _is_whole(file: BinaryIO) -> bool:
    """Whether the last bytes are the CRC-32 of those before; read a megabyte at a time."""
    left, crc = os.fstat(file.fileno()).st_size - CRC_BYTES, 0
    while left > 0:
        block = file.read(min(left, 1 << 20))
        if not block:
            return False
        crc, left = zlib.crc32(block, crc), left - len(block)
    return left == 0 and file.read() == crc.to_bytes(CRC_BYTES, "little")


class _Checked:
    """A file for writing that sums up the CRC-32 of what passes."""

    def __init__(self, file: BinaryIO):
        self._file, self.crc = file, 0

    def write(self, data: bytes) -> int:
        self.crc = zlib.crc32(data, self.crc)
        return self._file.write(data)
