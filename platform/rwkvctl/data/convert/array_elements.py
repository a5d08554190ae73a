"""One element of a stack, an array with all images of a data set or all their labels, as if it were a file of its own:
a PNG, or a TIFF of floats."""

from __future__ import annotations

import functools
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rwkvctl.base.errors import BadFile
from rwkvctl.data.convert.raw_files import RawFile
from rwkvctl.data.images import arrays
from rwkvctl.data.images.files import encode_png

ROUNDING = 1e-3
"""Labels that were saved as floats are whole numbers within this."""
_TOGETHER = 32 << 20
"""Bytes of a stack that are looked at together."""
_HIGHEST = 65535


@dataclass(frozen=True, slots=True)
class Stack:
    """An array whose elements are images or labels.

    file: on disk, so that a part of it can be read; array: its path in an HDF5 file, "" of an `.npy`; axes: `n` counts
    the elements, then as in `VoxelFile`; of_unit: labels are floats between 0 and 1 that stand for black and white;
    planes: the class of each plane of labels that have a plane a class; fault: why it cannot be read.
    """

    file: RawFile
    array: str
    shape: tuple[int, ...]
    dtype: str
    axes: str = ""
    of_unit: bool = False
    planes: tuple[int, ...] = ()
    fault: str = ""

    def __str__(self) -> str:
        return f"{self.file}:{self.array}" if self.array else str(self.file)

    @property
    def name(self) -> str:
        """Its place in the source."""
        return f"{self.file.path}/{self.array}" if self.array else self.file.path

    @property
    def count(self) -> int:
        return self.size("n") if self.axes else self.shape[0]

    def size(self, axis: str) -> int:
        return self.shape[self.axes.index(axis)] if axis in self.axes else 1

    @property
    def bytes_each(self) -> int:
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize // max(1, self.count)

    def element(self, number: int, what: What, channel: int | None = None) -> Element:
        """channel: of images with so many that each is a picture of its own."""
        path = f"{self.name}/{number:06d}.png"
        place = path, self.bytes_each, str(self), f"{number}", "element", self.file.stamp, self.file.data
        return Element(*place, stack=self, number=number, what=what, channel=channel)  # type: ignore[arg-type]


What = Literal["picture", "labels"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Element(RawFile):
    """See `Stack.element`. `str(file)` is `/data/data_train.npy[12]`."""

    stack: Stack
    number: int
    what: What
    channel: int | None = None

    def __str__(self) -> str:
        return f"{self.stack}[{self.number}]"

    def read(self) -> bytes:
        values = self.values()
        return _picture(values) if self.what == "picture" else _labels(self, values)

    def open(self) -> BinaryIO:
        return io.BytesIO(self.read())

    def head(self) -> bytes:
        """Of a picture of this kind: whether it is deep is asked of every image before it is read."""
        return _picture(np.zeros((1, 1), self.stack.dtype)) if self.what == "picture" else self.read()

    def values(self) -> NDArray[Any]:
        """(H, W) or (H, W, C), as they are stored."""
        own = np.asarray(_slice(self.stack, self.number))
        left = self.stack.axes.replace("n", "")
        own = own.transpose([left.index(axis) for axis in "yxc" if axis in left])
        if "c" in left and own.shape[-1] == 1:
            own = own[..., 0]
        return own if self.channel is None else own[..., self.channel]


def _slice(stack: Stack, number: int) -> NDArray[Any]:
    place = tuple(number if axis == "n" else slice(None) for axis in stack.axes)
    try:
        return np.asarray(_opened(stack.file, stack.array)[place])
    except (OSError, ValueError, RuntimeError) as error:
        raise BadFile(f"{stack}: cannot be read ({' '.join(str(error).split())[:80]}); copy it again") from error


@functools.lru_cache(maxsize=8)
def _opened(file: RawFile, array: str) -> Any:
    """An array of which nothing is in memory yet: an HDF5 data set, or an `.npy` that is mapped."""
    if array:
        import h5py

        return h5py.File(file.data, "r")[array]
    with file.open() as stream:
        header = arrays.npy_header(file, stream)
        start = file.offset + stream.tell()
    order: Literal["F", "C"] = "F" if header.is_fortran else "C"
    return np.memmap(file.data, header.dtype, "r", start, header.shape, order)


def whole(stack: Stack) -> NDArray[Any]:
    """All of a small array."""
    return np.asarray(_opened(stack.file, stack.array)[()])


def chunks(stack: Stack) -> Iterator[NDArray[Any]]:
    """All of a stack, (N, H, W[, C]), some elements at a time."""
    some = max(1, _TOGETHER // max(1, stack.bytes_each))
    whole = _opened(stack.file, stack.array)
    for first in range(0, stack.count, some):
        place = tuple(slice(first, first + some) if axis == "n" else slice(None) for axis in stack.axes)
        yield np.asarray(whole[place]).transpose([stack.axes.index(axis) for axis in "nyxc" if axis in stack.axes])


# Pictures -----------------------------------------------------------------------------------------------------------


def _picture(values: NDArray[Any]) -> bytes:
    """PNG of 8 and 16 bits, else a TIFF of floats, whose range is told by all of the data set's."""
    if values.dtype == bool:
        values = values.astype(np.uint8) * np.uint8(255)
    if values.dtype in (np.uint8, np.uint16) and (values.ndim == 2 or values.dtype == np.uint8):
        return encode_png(values)
    kind, own = (".png", values) if values.dtype == np.uint16 else (".tiff", values.astype(np.float32))
    if own.ndim == 3:
        return bytes(cv2.imencode(kind, np.ascontiguousarray(own[..., ::-1]))[1])
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(own)).save(buffer, "TIFF")
    return buffer.getvalue()


def _labels(own: Element, values: NDArray[Any]) -> bytes:
    """PNG of the numbers, or of the colours of a mask in colour."""
    if own.stack.planes:
        return encode_png(_of_planes(own, values))
    if values.ndim == 3:
        return encode_png(values)
    if own.stack.of_unit:
        values = np.rint(values * 255)
    if values.dtype.kind == "f":
        rounded = np.rint(values)
        off = ~(np.abs(values - rounded) <= ROUNDING)  # NaN, too
        if off.any():
            examples = ", ".join(f"{value:g}" for value in np.unique(values[off])[:3])
            raise BadFile(f"{own}: label values {examples} are not whole numbers; save the labels as integers")
        values = rounded
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > _HIGHEST:
        raise BadFile(f"{own}: label values {low}..{high}; give whole numbers from 0 to {_HIGHEST}, and 255 to ignore")
    return encode_png(values.astype(np.uint8 if high <= 255 else np.uint16))


def _of_planes(own: Element, values: NDArray[Any]) -> NDArray[np.uint8]:
    """Class ids of (H, W, K); where planes overlap, the later class is taken."""
    planes = own.stack.planes
    if 0 in planes and (np.count_nonzero(values, axis=-1) != 1).any():
        raise BadFile(f"{own}: some pixels are of no plane, or of several; give each pixel one class")
    return np.asarray(np.max((values != 0) * np.array(planes, np.uint8), axis=-1), np.uint8)
