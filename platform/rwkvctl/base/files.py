"""Files that are either whole or absent: temporary file, fsync, rename."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from rwkvctl.base.errors import UserError

_NO_FLOCK = frozenset({errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP})
"""What a file system answers that does not know `flock` (some network and FUSE mounts)."""


_TEMPORARY = re.compile(r"\.(?P<opened>.+)\.[0-9a-f]{12}\.tmp|\.[0-9a-f]{12}\.tmp\.(?P<named>.+)", re.DOTALL)
"""What `atomic_open` and `atomic_path` call a file that is not whole yet."""


def _unique() -> str:
    """Part of a temporary name. Containers that share a folder may all be process 1 of a host of one name."""
    return uuid.uuid4().hex[:12]


@contextmanager
def atomic_open(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open `path` for binary writing; it appears under its name, whole, only when the block ends well."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name[:200]}.{_unique()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        fsync_directory(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def locked(path: str | os.PathLike[str]) -> Iterator[None]:
    """Hold the lock file beside `path`: the other processes of this machine wait. Without one where none can be
    written, on a read-only disk for instance."""
    try:
        lock = _acquired(Path(path), wait=True)
    except OSError:
        lock = None
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


@contextmanager
def locked_or_refused(path: str | os.PathLike[str]) -> Iterator[bool]:
    """Hold the lock file beside `path` without waiting for it; False: another process has it."""
    try:
        lock = _acquired(Path(path), wait=False)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _acquired(path: Path, wait: bool) -> BaseFileLock:
    """The lock of `path`, by `flock`, which ends with its process; where the file system has none, by a file that
    names its holder and is taken over when that process is gone. Timeout when it is held and not waited for."""
    name = path.with_name(f".{path.name}.lock")
    name.parent.mkdir(parents=True, exist_ok=True)
    timeout = -1 if wait else 0
    try:
        lock: BaseFileLock = FileLock(name, timeout=timeout)
        lock.acquire()
    except OSError as error:
        if error.errno not in _NO_FLOCK:
            raise
        lock = SoftFileLock(name.with_name(f"{name.name}file"), timeout=timeout)
        lock.acquire()
    return lock


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path beside `path`, for code that opens files by itself; takes its name when the block ends well.

    UserError where the path cannot be written, a folder for instance.
    """
    path = Path(path)
    temporary = path.with_name(f".{_unique()}.tmp.{path.name}")  # its ending says the format
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        fsync_directory(path.parent)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); give another path") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def remove_leftovers(folder: Path, names: Collection[str]) -> None:
    """Remove what a writer that was killed has left in `folder` of files of these names. Nobody else may be writing
    them."""
    ours = {*names, *(name[:200] for name in names)}
    for path in folder.glob(".*.tmp*"):
        match = _TEMPORARY.fullmatch(path.name)
        if match and (match["opened"] or match["named"]) in ours:
            path.unlink(missing_ok=True)


def fsync_directory(directory: Path) -> None:
    """Make renames in `directory` survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Write `content` to `path` atomically."""
    with atomic_open(path) as file:
        file.write(content)


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` as indented JSON with sorted keys, atomically."""
    write_bytes(path, (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode())


def printable(path: str | os.PathLike[str]) -> str:
    """A path as text that can be printed and stored: bytes of its names that are not UTF-8 are written `\\xNN`."""
    return os.fspath(path).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def sha256_file(path: str | os.PathLike[str]) -> str:
    """The hex SHA-256 of a file's content."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
