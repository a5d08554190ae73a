"""One raw file, wherever it lies: on disk, in a zip, at an offset of a tar, or in an object store."""

from __future__ import annotations

import functools
import io
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal

from rwkvctl.base.errors import BadFile
from rwkvctl.base.unpacking import refuse_lfs_pointer
from rwkvctl.data.store import bucket

MAX_FILE_BYTES = 4 << 30
"""Larger raw files are not read into memory."""
_HEAD = 32


@dataclass(frozen=True, slots=True)
class RawFile:
    """One raw file. `str(file)` is how messages name it: `/data/a.zip!/images/1.png`.

    path: its place in the source, POSIX, archives being folders that are named like them;
    size: bytes; home: the folder or archive that holds it; inner: its name in there; kind, data, offset: how it is
    read (`element`: see `array_elements`); stamp: time of change of the file or archive on disk.
    """

    path: str
    size: int
    home: str
    inner: str
    kind: Literal["file", "zip", "tar", "object", "element"]
    stamp: int
    data: str = field(repr=False)
    offset: int = 0

    def __str__(self) -> str:
        return f"{self.home}/{self.inner}" if self.kind in ("file", "object") else f"{self.home}!/{self.inner}"

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    @property
    def parent(self) -> str:
        """The path of its folder, "" at the top."""
        return self.path.rpartition("/")[0]

    @property
    def stem(self) -> str:
        """Its name without the last extension."""
        return self.name.rpartition(".")[0] or self.name

    @property
    def suffix(self) -> str:
        """Its last extension in lower case, with the dot; "" without one."""
        stem, dot, extension = self.name.rpartition(".")
        return f".{extension.lower()}" if dot and stem else ""

    def read(self) -> bytes:
        """Its whole content; BadFile when it cannot be read or is too large for memory."""
        if self.size > MAX_FILE_BYTES:
            raise BadFile(f"{self}: has {self.size} bytes, at most {MAX_FILE_BYTES} are read")
        try:
            with self.open() as stream:
                content = stream.read(self.size + 1)
        except (OSError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
            raise BadFile(f"{self}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
        if len(content) != self.size:
            raise BadFile(f"{self}: has other than its {self.size} bytes now; run the command again")
        refuse_lfs_pointer(self, content)
        return content

    def head(self) -> bytes:
        """Its first bytes, which tell its kind."""
        with self.open() as stream:
            return stream.read(_HEAD)

    def open(self) -> BinaryIO:
        """A seekable stream over its content."""
        if self.kind == "zip":
            return _zip(self.data, self.stamp).open(self.inner)  # type: ignore[return-value]
        if self.kind == "object":
            return io.BytesIO(bucket.read(self.data))
        stream = Path(self.data).open("rb")  # noqa: SIM115
        return stream if self.kind == "file" else io.BufferedReader(_Part(stream, self.offset, self.size))


@functools.lru_cache(maxsize=4)
def _zip(path: str, stamp: int) -> zipfile.ZipFile:
    """An open zip a process, because reading its directory takes longer than reading a member."""
    return zipfile.ZipFile(path)


class _Part(io.RawIOBase):
    """`size` bytes of a file from `offset` on, as a file."""

    def __init__(self, stream: BinaryIO, offset: int, size: int):
        self._stream, self._offset, self._size, self._at = stream, offset, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + (0, self._at, self._size)[whence])
        return self._at

    def readinto(self, buffer: Any) -> int:
        self._stream.seek(self._offset + self._at)
        content = self._stream.read(min(len(buffer), max(0, self._size - self._at)))
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)

    def close(self) -> None:
        self._stream.close()
        super().close()


def total_bytes(files: Iterable[RawFile]) -> int:
    return sum(file.size for file in files)
