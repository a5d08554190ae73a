"""Raw files wherever they lie: in folders, zip, tar and tar.gz, and in tars inside tars.

Archives are listed once and read member by member at their place, never unpacked. What an archive could do to the
machine that reads it (paths that leave it, links, devices, bombs, encryption) is refused when it is listed.
"""

from __future__ import annotations

import functools
import gzip
import io
import os
import re
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal

from natsort import natsort_keygen

from rwkvctl.errors import UserError

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")

MAX_FILE_BYTES = 4 << 30
"""Larger raw files are not read into memory."""
MAX_RATIO, RATIO_FREE_BYTES = 400, 256 << 20
"""An archive that grows more than so many times, beyond the first bytes, is a bomb. Label volumes grow 100 times."""

_JUNK_FOLDERS = frozenset({"__MACOSX", ".git", ".ipynb_checkpoints", "@eaDir"})
_JUNK_FILES = frozenset({"thumbs.db", "desktop.ini", ".ds_store"})
_ZIP_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)

_natural = natsort_keygen()


def natural_key(text: str) -> tuple[object, str]:
    """Sort key that puts 2 before 10; equal numbers written differently are ordered by their text."""
    return _natural(text), text


class BadFile(ValueError):
    """A raw file that cannot become a sample: one line, file first."""


@dataclass(frozen=True, slots=True)
class RawFile:
    """One raw file. `str(file)` is how messages name it: `/data/a.zip!/images/1.png`.

    path: its place in the source, POSIX, archives being folders that are named like them;
    size: bytes; home: the folder or archive that holds it; inner: its name in there; kind, data, offset: how it is
    read; stamp: time of change of the file or archive on disk.
    """

    path: str
    size: int
    home: str
    inner: str
    kind: Literal["file", "zip", "tar"]
    stamp: int
    data: str = field(repr=False)
    offset: int = 0

    def __str__(self) -> str:
        return f"{self.home}/{self.inner}" if self.kind == "file" else f"{self.home}!/{self.inner}"

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
        return content

    def open(self) -> BinaryIO:
        """A seekable stream over its content."""
        if self.kind == "zip":
            return _zip(self.data, self.stamp).open(self.inner)  # type: ignore[return-value]
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


class Source:
    """Everything that was given as `--source`.

    top: the files as they lie on disk, archives among them unopened; files: the same with archives as folders, and
    folders: the paths of all folders, empty ones too (listed when they are first asked for). Orders are natural.
    """

    def __init__(self, paths: Sequence[Path], spool: Path):
        self.paths = [_existing(path) for path in paths]
        self._spool = spool
        self._folders: set[str] = set()
        self.top = [file for path in self.paths for file in self._on_disk(path, self._prefix(path))]

    def __str__(self) -> str:
        return str(self.paths[0])

    def _prefix(self, path: Path) -> str:
        """Several sources are told apart by their names; one alone may be called anything."""
        return "" if len(self.paths) == 1 else f"{_without_extension(path.name) if path.is_file() else path.name}/"

    @functools.cached_property
    def files(self) -> list[RawFile]:
        plain = [file for file in self.top if not _is_archive(file.name)]
        found = {file.path: file for file in plain}
        inside: list[RawFile] = []
        for archive in (file for file in self.top if _is_archive(file.name)):
            for file in self._members(archive):
                twin = found.setdefault(file.path, file)
                if twin is file:
                    inside.append(file)
                elif twin.size != file.size or twin.kind != "file":  # an archive that lies beside its content is fine
                    raise UserError(f"{file}: is there a second time, {twin}; keep one of them")
        return plain + sorted(inside, key=lambda file: natural_key(file.path)) if inside else plain

    @property
    def folders(self) -> set[str]:
        parents = {file.parent for file in self.files} | self._folders
        return {"/".join(parts[:n]) for path in parents if path for parts in [path.split("/")] for n in _upto(parts)}

    def subfolders(self, parent: str) -> list[str]:
        """The paths of the folders right below `parent` ("" is the top), in natural order."""
        inside = f"{parent}/" if parent else ""
        found = (path for path in self._all_folders if path.startswith(inside) and "/" not in path[len(inside) :])
        return sorted(found, key=natural_key)

    @functools.cached_property
    def _all_folders(self) -> list[str]:
        return sorted(self.folders)

    def below(self, folder: str) -> list[RawFile]:
        """The files in and below a folder."""
        return [file for file in self.files if not folder or file.path.startswith(f"{folder}/")]

    def _on_disk(self, path: Path, prefix: str) -> Iterator[RawFile]:
        """Regular files in natural order, without the litter of operating systems. Links to folders are not
        followed, and links to files that leave the source are skipped: what is prepared is what lies in the source.
        """
        if path.is_file():
            yield _file(path.parent, path.name, path.name)
            return
        home = path.resolve()
        for folder, names, found in os.walk(path):
            relative = Path(folder).relative_to(path).as_posix()
            inside = "" if relative == "." else f"{relative}/"
            names[:] = sorted((n for n in names if not _is_junk_folder(n)), key=natural_key)
            self._folders.update(f"{prefix}{inside}{name}" for name in names)
            for name in sorted((n for n in found if not _is_junk_file(n)), key=natural_key):
                place = Path(folder, name)
                if place.is_symlink() and not place.resolve().is_relative_to(home):
                    continue
                if place.is_file():
                    yield _file(path, f"{inside}{name}", f"{prefix}{inside}{name}")

    def _members(self, archive: RawFile) -> list[RawFile]:
        """The files of an archive. Its name becomes a folder, unless the archive was given alone as the source or has
        that folder inside."""
        list_ = _list_zip if archive.suffix == ".zip" else self._list_tar
        try:
            found = list(list_(archive))
        except (OSError, zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{archive}: cannot be read as an archive ({error}); download it again") from error
        alone = len(self.paths) == 1 and self.paths[0].is_file()
        name = _without_extension(archive.name)
        folder = "" if alone else f"{archive.parent}/{name}/".lstrip("/")
        if folder and found and all(file.path.startswith(f"{name}/") for file in found):
            folder = folder.removesuffix(f"{name}/")
        kept = [file for file in found if not _is_junk(file.path)]
        return [_moved(file, folder + file.path) for file in kept]

    def _list_tar(self, archive: RawFile) -> Iterator[RawFile]:
        data = archive.data
        if _magic(archive, 2) == b"\x1f\x8b":
            data = str(self._unzip(archive))
        with Path(data).open("rb") as stream:
            end = stream.seek(0, io.SEEK_END)
            yield from _tar_members(stream, 0, end, str(archive), data, archive.stamp, "")

    def _unzip(self, archive: RawFile) -> Path:
        """A gzip stream can only be read from its start, so it is spooled once."""
        path = self._spool / f"{len(list(self._spool.iterdir()))}.tar"
        with archive.open() as packed, gzip.GzipFile(fileobj=packed) as unpacked, path.open("wb") as out:
            written = 0
            while block := unpacked.read(1 << 20):
                written += len(block)
                _refuse_bomb(archive, written, packed.tell())
                out.write(block)
        return path


@contextmanager
def open_sources(paths: Sequence[Path | str]) -> Iterator[Source]:
    """The `Source` of folders and archives; what had to be spooled is deleted at the end."""
    if not paths:
        raise UserError("--source: give the folder or archive that holds the raw files")
    with tempfile.TemporaryDirectory(prefix="rwkvctl-source-") as spool:
        yield Source([Path(path) for path in paths], Path(spool))


def _existing(source: Path) -> Path:
    source = source.expanduser().absolute()
    if not source.exists():
        raise UserError(f"--source {source}: does not exist")
    if not source.is_dir() and not (source.is_file() and _is_archive(source.name)):
        raise UserError(f"--source {source}: is not a folder and not an archive ({', '.join(ARCHIVES)})")
    return source


def _upto(parts: list[str]) -> range:
    return range(1, len(parts) + 1)


def _is_archive(name: str) -> bool:
    return name.lower().endswith(ARCHIVES)


def _without_extension(name: str) -> str:
    """`a.tar.gz` -> `a`."""
    return name[: -len(next(end for end in sorted(ARCHIVES, key=len, reverse=True) if name.lower().endswith(end)))]


def _is_junk_folder(name: str) -> bool:
    return name in _JUNK_FOLDERS or name.startswith(".")


def _is_junk_file(name: str) -> bool:
    return name.startswith(".") or name.lower() in _JUNK_FILES


def _is_junk(path: str) -> bool:
    *folders, name = path.split("/")
    return _is_junk_file(name) or any(map(_is_junk_folder, folders))


def on_disk(path: Path) -> RawFile:
    """A single file that lies in no source."""
    return _file(path.parent, path.name, path.name)


def _file(home: Path, inner: str, path: str) -> RawFile:
    status = (home / inner).stat()
    return RawFile(path, status.st_size, str(home), inner, "file", status.st_mtime_ns, str(home / inner))


def _moved(file: RawFile, path: str) -> RawFile:
    return RawFile(path, file.size, file.home, file.inner, file.kind, file.stamp, file.data, file.offset)


def _magic(file: RawFile, size: int) -> bytes:
    with file.open() as stream:
        return stream.read(size)


def _list_zip(archive: RawFile) -> Iterator[RawFile]:
    with zipfile.ZipFile(archive.data) as opened:
        members = opened.infolist()
    _refuse_bomb(archive, sum(member.file_size for member in members), archive.size)
    for member in members:
        path = _safe_path(archive, member.filename)
        mode = stat.S_IFMT(member.external_attr >> 16) if member.create_system == 3 else 0
        if member.is_dir() or mode == stat.S_IFDIR:
            continue
        if mode not in (0, stat.S_IFREG):
            raise _refused(archive, member.filename, "is a link or a device")
        if member.flag_bits & 1:
            raise UserError(f"{archive}!/{member.filename}: is encrypted; unpack the archive with its password first")
        if member.compress_type not in _ZIP_METHODS:
            raise UserError(f"{archive}!/{member.filename}: unknown compression; unpack it and give the folder")
        yield RawFile(path, member.file_size, str(archive), member.filename, "zip", archive.stamp, archive.data)


def _tar_members(
    stream: BinaryIO, start: int, end: int, shown: str, data: str, stamp: int, folder: str
) -> Iterator[RawFile]:
    """The files of the tar that lies at start..end of `stream`; a tar among them is a folder (ImageNet's classes)."""
    stream.seek(start)
    nested: list[tuple[str, int, int]] = []
    with tarfile.open(fileobj=stream, mode="r:") as tar:
        for member in tar:
            path = _safe_path(shown, member.name)
            if member.isdir():
                continue
            if not member.isreg() or member.issparse():
                raise _refused(shown, member.name, "is a link, a device or sparse")
            if member.offset_data + member.size > end:
                raise tarfile.ReadError("truncated")
            if path.lower().endswith(".tar"):
                nested.append((path, member.offset_data, member.offset_data + member.size))
            else:
                place = (folder + path, member.size, shown, member.name)
                yield RawFile(*place, "tar", stamp, data, member.offset_data)
        last = tar.offset
    stream.seek(last)
    if stream.read(min(512, max(0, end - last))) != bytes(512):
        raise tarfile.ReadError("it has no end mark, so it is truncated")
    for path, first, after in nested:
        yield from _tar_members(
            stream, first, after, f"{shown}!/{path}", data, stamp, folder + _without_extension(path) + "/"
        )


def list_tar(file: RawFile) -> list[RawFile]:
    """The members of an uncompressed tar that `Source.top` holds; UserError when it is damaged or hostile."""
    try:
        with Path(file.data).open("rb") as stream:
            return list(_tar_members(stream, 0, file.size, str(file), file.data, file.stamp, ""))
    except (OSError, tarfile.TarError) as error:
        raise UserError(f"{file}: cannot be read as an archive ({error}); download it again") from error


def _safe_path(archive: object, name: str) -> str:
    """A member's path, with `/` between its parts and none of them `.`; UserError for one that leaves the archive."""
    text = name.replace("\\", "/")
    parts = [part for part in text.split("/") if part not in ("", ".")]
    if text.startswith("/") or ".." in parts or re.match("[A-Za-z]:", text) or "\0" in text:
        raise _refused(archive, name, "leaves the archive")
    return "/".join(parts)


def _refused(archive: object, name: str, why: str) -> UserError:
    return UserError(f"{archive}: its member {name!r} {why}, which no data set needs; do not use this archive")


def _refuse_bomb(archive: object, unpacked: int, packed: int) -> None:
    if unpacked > RATIO_FREE_BYTES and unpacked > MAX_RATIO * max(packed, 1):
        raise UserError(f"{archive}: unpacks to over {MAX_RATIO} times its size, a bomb; do not use this archive")


def gunzip(data: bytes, shown: object) -> bytes:
    """The content of a gzip file in memory (`.nii.gz`); BadFile when it is damaged or a bomb."""
    unpacked = io.BytesIO()
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as stream:
            while block := stream.read(1 << 20):
                unpacked.write(block)
                _refuse_bomb(shown, unpacked.tell(), len(data))
    except (OSError, EOFError, zlib.error) as error:
        raise BadFile(f"{shown}: damaged gzip ({error}); download it again") from error
    except UserError as error:
        raise BadFile(str(error)) from error
    return unpacked.getvalue()


def total_bytes(files: Iterable[RawFile]) -> int:
    return sum(file.size for file in files)
