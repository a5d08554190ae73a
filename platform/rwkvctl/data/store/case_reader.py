"""Readers of parts of a split; slices read out of stored volumes, and volumes put together of stored slices."""

from __future__ import annotations

import math
import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwkvctl.data.images import files as image_files
from rwkvctl.data.store.case_forms import CaseForms
from rwkvctl.data.store.manifest import Manifest
from rwkvctl.data.store.reader import NPY_HEADER, Reader, npy_header


def reader_for(manifest: Manifest, ids: list[str]) -> Reader:
    """A reader of the samples `ids`, row i being ids[i]; of volumes also in the form in which they are not stored."""
    try:
        return Reader(manifest, manifest.index.rows(ids))
    except KeyError:
        if manifest.has_volumes:
            return CaseReader(manifest, ids)
        return Reader(manifest, manifest.rows(ids))  # which says what is wrong


class CaseReader(Reader):
    """A reader of samples in either form, row i being ids[i].

    Of a sample that is made of several, the methods of `Reader` that are not here are about the first. A slice of a
    volume is read by itself; like those of `Reader.volume` it is not compared with a checksum.
    """

    def __init__(self, manifest: Manifest, ids: list[str]):
        forms = CaseForms(manifest)
        places = [forms.place(key) for key in ids]
        super().__init__(manifest, np.array([place.rows[0] for place in places], np.int64))
        self._ids, self._zs = list(ids), [place.z for place in places]
        stacks = {row: place.rows for row, place in enumerate(places) if place.is_stack}
        self._slices = Reader(manifest, np.array([row for rows in stacks.values() for row in rows], np.int64))
        ends = np.cumsum([len(rows) for rows in stacks.values()]).tolist()
        self._stacks = {row: range(end - len(rows), end) for (row, rows), end in zip(stacks.items(), ends, strict=True)}

    def key(self, row: int) -> str:
        return self._ids[row]

    @property
    def decoded_bytes(self) -> int:
        return super().decoded_bytes + self._slices.decoded_bytes  # a volume counts for each of its slices

    def check(self, row: int) -> None:
        super().check(row)
        for own in self._stacks.get(row, ()):
            self._slices.check(own)

    def volume(self, row: int) -> NDArray[np.float32]:
        """A volume of slices is read as a whole."""
        own = self._stacks.get(row)
        if own is None:
            return super().volume(row)
        return np.stack([self._slices.image(each).astype(np.float32, copy=False) for each in own])

    def npy_shape(self, row: int, extension: str) -> tuple[int, ...]:
        shape, own = super().npy_shape(row, extension), self._stacks.get(row)
        if own is not None:
            return (len(own), *shape)
        return shape if self._zs[row] is None else shape[1:]

    def image(self, row: int, least: image_files.Size | None = None) -> NDArray[np.uint8] | NDArray[np.float32]:
        if row in self._stacks:
            return self.volume(row)
        z = self._zs[row]
        return (
            super().image(row, least) if z is None else self._slice(row, "image.npy", z).astype(np.float32, copy=False)
        )

    def mask(self, row: int) -> NDArray[np.uint8]:
        z, own = self._zs[row], self._stacks.get(row)
        if own is not None:
            return np.stack([self._slices.mask(each) for each in own])
        return super().mask(row) if z is None else self._slice(row, "mask.npy", z)

    def meta(self, row: int) -> dict[str, Any]:
        found = super().meta(row)
        if row in self._stacks:
            return {**found, "id": self._ids[row], "z": None}
        return found if self._zs[row] is None else {**found, "id": self._ids[row], "z": self._zs[row]}

    def _slice(self, row: int, extension: str, z: int) -> NDArray[Any]:
        """One plane of an npy member, without the others."""
        offset, size, _ = map(int, self._index.members[extension][self._at(row)])
        descriptor = self._descriptor(self._shard(row))
        try:
            shape, dtype, start = npy_header(os.pread(descriptor, min(size, NPY_HEADER), offset), size)
            if not 0 <= z < shape[0]:
                raise ValueError(f"has {shape[0]} slices, and slice {z} is asked for")
            each = math.prod(shape[1:]) * dtype.itemsize
            data = os.pread(descriptor, each, offset + start + z * each)
            if len(data) != each:
                raise ValueError("the shard is shorter than its index says")
        except ValueError as error:
            raise self._bad(row, extension, error) from error
        return np.frombuffer(bytearray(data), dtype).reshape(shape[1:])
