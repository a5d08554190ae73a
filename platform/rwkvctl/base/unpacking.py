"""Bytes that are not what their name says: bombs, damaged gzip, pointers of Git LFS."""

from __future__ import annotations

import gzip
import io
import zlib

from rwkvctl.base.errors import BadFile, UserError

MAX_RATIO, RATIO_FREE_BYTES = 400, 256 << 20
"""An archive that grows more than so many times, beyond the first bytes, is a bomb. Label volumes grow 100 times."""


LFS_POINTER = b"version https://git-lfs.github.com/spec/"


def refuse_lfs_pointer(name: object, data: bytes) -> None:
    """BadFile for the few lines that Git leaves in place of a large file."""
    if data.startswith(LFS_POINTER):
        raise BadFile(f"{name}: is a Git LFS pointer, not the file itself; run git lfs pull where it was cloned")


def refuse_bomb(name: object, unpacked: int, packed: int) -> None:
    """UserError once `packed` bytes have become too many `unpacked` ones."""
    if unpacked > RATIO_FREE_BYTES and unpacked > MAX_RATIO * max(packed, 1):
        raise UserError(
            f"{name}: unpacks to over {MAX_RATIO} times its size (a decompression bomb); do not use this archive"
        )


def gunzip(data: bytes, name: object) -> bytes:
    """The content of a gzip file in memory (`.nii.gz`); BadFile when it is damaged or a bomb."""
    unpacked = io.BytesIO()
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as stream:
            while block := stream.read(1 << 20):
                unpacked.write(block)
                refuse_bomb(name, unpacked.tell(), len(data))
    except (OSError, EOFError, zlib.error) as error:
        raise BadFile(f"{name}: damaged gzip ({error}); download it again") from error
    except UserError as error:
        raise BadFile(str(error)) from error
    return unpacked.getvalue()
