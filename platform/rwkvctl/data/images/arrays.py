"""Arrays in files without a grid: `.npy`, `.npz` and HDF5 (`.h5`), from any source. Nothing in them is run or followed:
pickled objects, and HDF5's links to other files, are refused."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from rwkvctl.base.errors import BadFile
from rwkvctl.base.unpacking import refuse_bomb, refuse_lfs_pointer

HDF5 = (".h5", ".hdf5", ".hdf")
ENDINGS = (".npy", ".npz", *HDF5)
SPACINGS = {"spacing": 1.0, "spacing_mm": 1.0, "voxel_spacing": 1.0, "voxel_size": 1.0, "pixdim": 1.0, "voxelsize": 1.0,
            "resolution": 1.0, "element_size_um": 1e-3, "zooms": 1.0, "pixel_spacing": 1.0}  # fmt: skip
"""Names of attributes, or of arrays, with one number an axis, and what makes mm of it."""


class Entry(NamedTuple):
    """An array of a file: its name (a path in HDF5), shape and type; spacing: mm an axis, where something says so."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    spacing: tuple[float, ...] | None = None


class NpyHeader(NamedTuple):
    shape: tuple[int, ...]
    is_fortran: bool
    dtype: np.dtype[Any]


class ArrayFile(Protocol):
    """A file on disk or in an archive."""

    @property
    def kind(self) -> str: ...

    @property
    def size(self) -> int: ...

    @property
    def name(self) -> str: ...

    def open(self) -> BinaryIO: ...

    def read(self) -> bytes: ...


def listed(file: ArrayFile, texts: bool = False) -> list[Entry]:
    """The numeric arrays of a file, from its headers, with `texts` those of text in HDF5 too; BadFile where it is
    damaged, or holds objects."""
    with _opened(file) as opened:
        if isinstance(opened, _Npz):
            return opened.entries()
        kinds = "biufSO" if texts else "biuf"
        found = {name: _entry(name, own) for name, own in _datasets(file, opened) if own.dtype.kind in kinds}
        spacing = _spacing(opened.attrs) or _spacing({name: opened[name] for name in found if found[name].shape})
        return [own if own.spacing or not spacing else own._replace(spacing=spacing) for own in found.values()]


def read(file: ArrayFile, name: str) -> NDArray[Any]:
    """The array `name`; BadFile as in `listed`, or where there is none of this name."""
    with _opened(file) as opened:
        if isinstance(opened, _Npz):
            return opened.array(name)
        own = dict(_datasets(file, opened)).get(name)
        if own is None:
            raise BadFile(f"{file}: has no array {name!r}; add it, or move the file elsewhere")
        return np.asarray(own[()])


@contextmanager
def _opened(file: ArrayFile) -> Iterator[Any]:
    """An HDF5 file, or `_Npz`; whatever a library says of a damaged file becomes a BadFile."""
    try:
        with _seekable(file) as stream:
            refuse_lfs_pointer(file, stream.read(64))
            stream.seek(0)
            if file.name.lower().endswith(HDF5):
                import h5py

                with h5py.File(stream, "r") as opened:
                    yield opened
            else:
                yield _Npz(file, stream)
    except BadFile:
        raise
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        brief = " ".join(str(error).strip("'\"").split())[:80]
        kind = "HDF5" if file.name.lower().endswith(HDF5) else "NumPy"
        raise BadFile(f"{file}: is damaged, or no {kind} file ({brief}); replace it") from error


def _seekable(file: ArrayFile) -> BinaryIO:
    """A stream in which going back costs nothing, as it does in a zip."""
    return io.BytesIO(file.read()) if file.kind == "zip" else file.open()


# HDF5 ---------------------------------------------------------------------------------------------------------------


def _datasets(file: ArrayFile, opened: Any) -> list[tuple[str, Any]]:
    """All arrays of a file. Links are not followed; data that lies in other files is refused."""
    import h5py

    found: list[tuple[str, Any]] = []
    opened.visititems(lambda name, own: found.append((name, own)) if isinstance(own, h5py.Dataset) else None)
    for name, own in found:
        if own.external or own.is_virtual:
            raise BadFile(f"{file}: keeps {name!r} in other files; save it as one file")
    return found


def _entry(name: str, own: Any) -> Entry:
    return Entry(name, tuple(int(n) for n in own.shape), own.dtype, _spacing(own.attrs))


def _spacing(values: Mapping[str, Any]) -> tuple[float, ...] | None:
    """From attributes or small arrays, in mm; None where none says it."""
    for name in values:
        factor = SPACINGS.get(name.rpartition("/")[2].lower())
        if factor is None:
            continue
        try:
            own = np.asarray(values[name][()] if hasattr(values[name], "dtype") else values[name], np.float64).ravel()
        except (TypeError, ValueError):
            continue
        if 2 <= own.size <= 3 and np.isfinite(own).all() and (own > 0).all():
            return tuple(float(step) * factor for step in own)
    return None


# NumPy --------------------------------------------------------------------------------------------------------------


class _Npz:
    """The arrays of an npz, or the one of an npy, which is called ""."""

    def __init__(self, file: ArrayFile, stream: BinaryIO):
        self._file = file
        self._zip = zipfile.ZipFile(stream) if file.name.lower().endswith(".npz") else None
        self._stream = stream

    def entries(self) -> list[Entry]:
        found = [own for name in self._names() if (own := self._header(name)).dtype.kind in "biuf"]
        small = {own.name: self.array(own.name) for own in found if 1 <= int(np.prod(own.shape)) <= 3}
        return [own._replace(spacing=_spacing(small)) for own in found]

    def array(self, name: str) -> NDArray[Any]:
        if name not in self._names():
            raise BadFile(f"{self._file}: has no array {name!r}; add it, or move the file elsewhere")
        own = self._header(name)
        refuse_bomb(self._file, int(np.prod(own.shape)) * own.dtype.itemsize, self._file.size)
        with self._member(name) as stream:
            return np.asarray(np.lib.format.read_array(stream, allow_pickle=False))

    def _names(self) -> list[str]:
        if self._zip is None:
            return [""]
        return [name.removesuffix(".npy") for name in self._zip.namelist() if name.endswith(".npy")]

    def _member(self, name: str) -> Any:
        if self._zip is None:
            self._stream.seek(0)
            return _left_open(self._stream)
        return self._zip.open(f"{name}.npy")

    def _header(self, name: str) -> Entry:
        with self._member(name) as stream:
            own = npy_header(self._file, stream, name)
        return Entry(name, own.shape, own.dtype)


def npy_header(file: object, stream: Any, name: str = "") -> NpyHeader:
    """Of an `.npy` at the beginning of a stream, which then is where its numbers begin; BadFile for Python objects."""
    version = np.lib.format.read_magic(stream)
    reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, is_fortran, dtype = reader(stream)
    if dtype.hasobject:
        raise BadFile(f"{file}: holds Python objects in {name or 'its array'!r}; save plain numbers")
    return NpyHeader(tuple(shape), is_fortran, dtype)


@contextmanager
def _left_open(stream: BinaryIO) -> Iterator[BinaryIO]:
    yield stream
