"""The members of zip and tar archives, tars inside tars too, and all that is refused in them.

Archives are read member by member at their place, never unpacked. What an archive could do to the machine that reads it
(paths that leave it, links, devices, bombs, encryption) is refused when it is listed.
"""

from __future__ import annotations

import gzip
import io
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from rwkvctl.base.errors import UserError
from rwkvctl.base.files import printable
from rwkvctl.base.unpacking import refuse_bomb
from rwkvctl.data.convert.raw_files import RawFile

EXTENSIONS = (".zip", ".tar", ".tar.gz", ".tgz")

_ZIP_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)


def is_archive(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS)


def without_extension(name: str) -> str:
    """`a.tar.gz` -> `a`."""
    return name[: -len(next(end for end in sorted(EXTENSIONS, key=len, reverse=True) if name.lower().endswith(end)))]


def members(archive: RawFile, spool: Path) -> list[RawFile]:
    """The files of an archive, their paths being those inside it; UserError when it is damaged or hostile.

    A gzip stream can only be read from its start, so a tar.gz is written once, unzipped, to the folder `spool`.
    """
    try:
        if archive.suffix == ".zip":
            return list(_list_zip(archive))
        data = archive.data if _magic(archive, 2) != b"\x1f\x8b" else str(_unzip(archive, spool))
        with Path(data).open("rb") as stream:
            end = stream.seek(0, io.SEEK_END)
            return list(_tar_members(stream, 0, end, str(archive), data, archive.stamp, ""))
    except (OSError, zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{archive}: cannot be read as an archive ({error}); download it again") from error


def _unzip(archive: RawFile, spool: Path) -> Path:
    path = spool / f"{len(list(spool.iterdir()))}.tar"
    with archive.open() as packed, gzip.GzipFile(fileobj=packed) as unpacked, path.open("wb") as out:
        written = 0
        while block := unpacked.read(1 << 20):
            written += len(block)
            refuse_bomb(archive, written, packed.tell())
            out.write(block)
    return path


def _magic(file: RawFile, size: int) -> bytes:
    with file.open() as stream:
        return stream.read(size)


def _list_zip(archive: RawFile) -> Iterator[RawFile]:
    with zipfile.ZipFile(archive.data) as opened:
        members = opened.infolist()
    refuse_bomb(archive, sum(member.file_size for member in members), archive.size)
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
                place = (folder + path, member.size, shown, printable(member.name))
                yield RawFile(*place, "tar", stamp, data, member.offset_data)
        last = tar.offset
    stream.seek(last)
    if stream.read(min(512, max(0, end - last))) != bytes(512):
        raise tarfile.ReadError("it has no end mark, so it is truncated")
    for path, first, after in nested:
        yield from _tar_members(
            stream, first, after, f"{shown}!/{path}", data, stamp, folder + without_extension(path) + "/"
        )


def _safe_path(archive: object, name: str) -> str:
    """A member's path, with `/` between its parts and none of them `.`; UserError for one that leaves the archive."""
    text = name.replace("\\", "/")
    parts = [part for part in text.split("/") if part not in ("", ".")]
    if text.startswith("/") or ".." in parts or re.match("[A-Za-z]:", text) or "\0" in text:
        raise _refused(archive, name, "leaves the archive")
    return printable("/".join(parts))


def _refused(archive: object, name: str, why: str) -> UserError:
    return UserError(f"{archive}: its member {name!r} {why}, which no data set needs; do not use this archive")
