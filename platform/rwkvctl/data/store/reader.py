"""Members of samples, by row, straight from the shards: one pread each, no tar parsing."""

from __future__ import annotations

import io
import json
import math
import os
import zlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwkvctl.base.errors import UserError
from rwkvctl.data.images import files as image_files
from rwkvctl.data.store.index import Index
from rwkvctl.data.store.manifest import Manifest

OPEN_SHARDS = 16


class Reader:
    """Random access to a data set, or to the rows of one split part, which are counted from 0 again.

    Files are opened in the process that reads, at most OPEN_SHARDS at a time; a reader can be pickled or forked. Of a
    large data set, a pickled one is the names of the files that index and rows are mapped from.
    """

    def __init__(self, manifest: Manifest, rows: NDArray[np.int64] | None = None):
        self._index: Index = manifest.index
        self._rows = None
        if rows is not None and self._index.is_mapped:
            self._rows = manifest.kept_rows(rows)
        elif rows is not None:
            self._index = self._index.take(rows)
        self._files = manifest.shard_files
        self._descriptors: OrderedDict[int, int] = OrderedDict()
        self._owner = os.getpid()

    def __len__(self) -> int:
        return len(self._index if self._rows is None else self._rows.array)

    def shards(self) -> NDArray[np.int32]:
        """(N,) the shard number of every sample."""
        return self._index.shard if self._rows is None else self._index.shard[self._rows.array]

    def key(self, row: int) -> str:
        return self._index.keys[self._at(row)].decode()

    def has(self, row: int, extension: str) -> bool:
        return extension in self._index.members and bool(self._index.members[extension][self._at(row), 0] >= 0)

    @property
    def decoded_bytes(self) -> int:
        """About how large its samples are in memory: files of pictures are ten times smaller."""
        rows = slice(None) if self._rows is None else self._rows.array
        members = self._index.members.items()
        return sum(int(at[rows, 1].sum()) * (1 if name.endswith("npy") else 10) for name, at in members)

    def _at(self, row: int) -> int:
        """The sample's row in the index."""
        return row if self._rows is None else int(self._rows.array[row])

    def _shard(self, row: int) -> int:
        return int(self._index.shard[self._at(row)])

    def read(self, row: int, extension: str) -> bytes:
        """A member's bytes. UserError when the shard is not there, too short, or the bytes are not those written."""
        if not self.has(row, extension):
            raise UserError(f"{self._path(row)}: sample {self.key(row)} has no member {extension}")
        offset, size, crc = map(int, self._index.members[extension][self._at(row)])
        data = os.pread(self._descriptor(self._shard(row)), size, offset)
        if len(data) != size:
            raise self._bad(row, extension, ValueError("the shard is shorter than its index says"))
        if zlib.crc32(data) != crc:
            raise self._bad(row, extension, ValueError("its bytes are not those that were written (CRC differs)"))
        return data

    def check(self, row: int) -> None:
        """Read every member of a sample; UserError for the first that is not as it was written."""
        for extension in self._index.members:
            if self.has(row, extension):
                self.read(row, extension)

    def volume(self, row: int) -> NDArray[np.float32]:
        """(D, H, W), or (D, H, W, C) of several channels, of a whole volume, its slices read when they are used.

        Only whole members have a checksum, so a slice is not compared with one: hash the shard first.
        """
        offset, size, _ = map(int, self._index.members["image.npy"][self._at(row)])
        descriptor = self._descriptor(self._shard(row))
        try:
            shape, dtype, start = npy_header(os.pread(descriptor, min(size, NPY_HEADER), offset), size)
            if dtype != np.float32 or len(shape) not in (3, 4):
                raise ValueError(f"{dtype} {shape}, whole volumes are float32 (D, H, W) or (D, H, W, C)")
            with os.fdopen(os.dup(descriptor), "rb") as file:  # "c": as writeable as an array that was read
                return np.memmap(file, dtype, "c", offset + start, shape)
        except ValueError as error:
            raise self._bad(row, "image.npy", error) from error

    def npy_shape(self, row: int, extension: str) -> tuple[int, ...]:
        """The shape of an npy member, by its header alone."""
        offset, size, _ = map(int, self._index.members[extension][self._at(row)])
        start = os.pread(self._descriptor(self._shard(row)), min(size, NPY_HEADER), offset)
        try:
            return npy_header(start, size)[0]
        except ValueError as error:
            raise self._bad(row, extension, error) from error

    def photo(self, row: int) -> Photo:
        """A JPEG or PNG, not decoded yet."""
        extension = "png" if self.has(row, "png") else "jpg"
        return Photo(self.read(row, extension), partial(self._bad, row, extension))

    def image(self, row: int, least: image_files.Size | None = None) -> NDArray[np.uint8] | NDArray[np.float32]:
        """uint8 (H, W, 3) from JPEG or PNG, `least` as in `image_files.decode_rgb`; float32 ([D,] H, W[, C]) from
        npy."""
        if not self.has(row, "image.npy"):
            return self.photo(row).pixels(least)
        data = self.read(row, "image.npy")
        try:
            return decode_npy(data).astype(np.float32, copy=False)
        except ValueError as error:
            raise self._bad(row, "image.npy", error) from error

    def mask(self, row: int) -> NDArray[np.uint8]:
        """Class ids, uint8 (H, W) or (D, H, W)."""
        extension = "mask.png" if self.has(row, "mask.png") else "mask.npy"
        data = self.read(row, extension)
        try:
            mask = image_files.decode_ids(data) if extension == "mask.png" else decode_npy(data)
            if mask.dtype != np.uint8:
                raise ValueError(f"dtype {mask.dtype}, a mask is uint8")
        except ValueError as error:
            raise self._bad(row, extension, error) from error
        return mask

    def label(self, row: int) -> int:
        """The class number of a classification sample."""
        text = self.read(row, "cls")
        if not text.isdigit() or len(text) > 9:
            raise self._bad(row, "cls", ValueError("not a class number"))
        return int(text)

    def meta(self, row: int) -> dict[str, Any]:
        """The sample's json."""
        text = self.read(row, "json")
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise self._bad(row, "json", error) from error
        if not isinstance(value, dict):
            raise self._bad(row, "json", ValueError("not an object"))
        return value

    def _path(self, row: int) -> str:
        return self._files.name(self._shard(row))

    def _bad(self, row: int, extension: str, error: Exception) -> UserError:
        advice = self._files.advice(self._shard(row))
        return UserError(f"{self._path(row)}: {self.key(row)}.{extension}: {error}; {advice}")

    def _descriptor(self, shard: int) -> int:
        if self._owner != os.getpid():  # forked: the parent's descriptors are the parent's to close
            self._descriptors, self._owner = OrderedDict(), os.getpid()
        if shard in self._descriptors:
            self._descriptors.move_to_end(shard)
            return self._descriptors[shard]
        if len(self._descriptors) >= OPEN_SHARDS:
            os.close(self._descriptors.popitem(last=False)[1])
        self._descriptors[shard] = self._files.open(shard)
        return self._descriptors[shard]

    def close(self) -> None:
        if self._owner == os.getpid():
            while self._descriptors:
                os.close(self._descriptors.popitem()[1])

    def __del__(self) -> None:
        if hasattr(self, "_descriptors"):
            self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_descriptors": OrderedDict(), "_owner": -1}


@dataclass(frozen=True)
class Photo:
    """An image in the bytes of its file: a transform may want its size first and then a fraction of its pixels.

    `blame` makes the error to raise of one that says what is wrong with the bytes.
    """

    data: bytes
    blame: Callable[[ValueError], Exception] = lambda error: error

    @property
    def size(self) -> image_files.Size:
        """(height, width)."""
        try:
            return image_files.size_of(self.data)
        except ValueError as error:
            raise self.blame(error) from error

    def pixels(self, least: image_files.Size | None = None) -> NDArray[np.uint8]:
        """uint8 (H, W, 3); see `image_files.decode_rgb` for `least`."""
        try:
            return image_files.decode_rgb(self.data, least)
        except ValueError as error:
            raise self.blame(error) from error


def decode_npy(data: bytes) -> NDArray[Any]:
    """An npy member; ValueError for objects (pickle), odd dtypes, or a size that is not that of its data."""
    shape, dtype, start = npy_header(data, len(data))
    # Copied, because an array over `bytes` is read-only and torch cannot take those.
    return np.frombuffer(data, dtype, math.prod(shape), start).reshape(shape).copy()


NPY_HEADER = 4096
"""Bytes that hold the header of any npy member; ours have 128."""


def npy_header(data: bytes, size: int) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Shape, dtype and where the values begin of an npy member of `size` bytes, from its first bytes."""
    buffer = io.BytesIO(data)
    try:
        if np.lib.format.read_magic(buffer) != (1, 0):
            raise ValueError("npy version other than 1.0")
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(buffer)
    except ValueError as error:
        raise ValueError(f"not an npy file ({str(error).splitlines()[0]})") from error
    if dtype.kind not in "fu" or fortran or len(shape) not in (2, 3, 4):
        raise ValueError(f"npy of dtype {dtype} and shape {shape}, which is neither image nor mask")
    start = buffer.tell()
    if math.prod(shape) * dtype.itemsize != size - start:
        raise ValueError(f"npy header says {shape} {dtype}, but {size - start} bytes follow")
    return shape, dtype, start
