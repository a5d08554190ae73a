"""The training samples of a data set, decoded and resized once a machine, for every epoch and trial that reads them.

What is kept of a sample is what its augmentation begins with: image and mask at the training's size. One file in the
cache holds the samples of a split part one after the other, in the order of the part. All processes read it, and so
share its pages in the system's page cache; whoever does not find it, or finds a sample damaged, decodes that from its
shard, which gives the same pixels.
"""

from __future__ import annotations

import contextlib
import copy
import errno
import hashlib
import os
import shutil
import threading
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import PIL
import simplejpeg
from numpy.typing import NDArray

from rwkvctl.base import files
from rwkvctl.base.errors import UserError, explain
from rwkvctl.base.processes import available_cpus
from rwkvctl.config import settings
from rwkvctl.data.feed import transforms
from rwkvctl.data.feed.transforms import Pixels
from rwkvctl.data.store.manifest import Manifest
from rwkvctl.data.store.reader import Reader
from rwkvctl.data.store.shards import make_room, mark_used

Pair = tuple[Pixels, NDArray[np.uint8]]

FORM = 1
"""Of the files. Another one where decoding or resizing gives other pixels, so that older files are not read."""
CRC_BYTES = 4
AT_ONCE = 64
"""Samples that are decoded before they are written."""
SPARE = 5 << 30
"""Bytes that a disk has left at least."""


def stored_pair(reader: Reader, row: int, size: tuple[int, int]) -> Pair:
    """Image and mask of a sample from its shard, at the size of the training."""
    image, mask = reader.image(row, least=size), reader.mask(row)
    return transforms.resize_image(image, size), transforms.resize_mask(mask, size)


class Layout(NamedTuple):
    """How a sample lies in the file: image, mask, CRC-32 of both."""

    image: tuple[int, ...]
    dtype: str
    mask: tuple[int, int]

    @classmethod
    def of(cls, manifest: Manifest, size: tuple[int, int]) -> Layout:
        if manifest.image_kind == "rgb8":
            return cls((*size, 3), "u1", size)
        return cls((*size, manifest.channels) if manifest.channels > 1 else size, "<f4", size)

    @property
    def image_bytes(self) -> int:
        return int(np.prod(self.image)) * np.dtype(self.dtype).itemsize

    @property
    def sample_bytes(self) -> int:
        return self.image_bytes + int(np.prod(self.mask)) + CRC_BYTES

    def pack(self, pair: Pair) -> bytes:
        image, mask = pair
        if (image.shape, image.dtype, mask.shape) != (self.image, np.dtype(self.dtype), self.mask):
            raise UserError(f"image {image.dtype} {image.shape} and mask {mask.shape} are not those of a slice")
        data = image.tobytes() + mask.tobytes()
        return data + zlib.crc32(data).to_bytes(CRC_BYTES, "little")

    def unpack(self, data: bytearray) -> Pair | None:
        """Two views of `data`; None when its CRC is another."""
        content = memoryview(data)[:-CRC_BYTES]
        if zlib.crc32(content) != int.from_bytes(data[-CRC_BYTES:], "little"):
            return None
        image: Any = np.frombuffer(content[: self.image_bytes], self.dtype).reshape(self.image)
        return image, np.frombuffer(content[self.image_bytes :], np.uint8).reshape(self.mask)


class Decoded:
    """A file of decoded samples. It is opened in each process that reads, and may be pickled or forked."""

    def __init__(self, path: Path, layout: Layout):
        self.path, self.layout = path, layout
        self._file: int | None = None
        self._owner = -1

    def pair(self, row: int) -> Pair | None:
        """The sample `row` of the part, in memory of its own; None where it has to be decoded."""
        descriptor = self._descriptor()
        if descriptor is None:
            return None
        data = bytearray(self.layout.sample_bytes)
        try:
            if os.preadv(descriptor, [data], row * len(data)) != len(data):
                return None
        except OSError:
            return None
        return self.layout.unpack(data)

    def _descriptor(self) -> int | None:
        if self._owner != os.getpid():
            self._owner, self._file = os.getpid(), None
            with contextlib.suppress(OSError):  # it made room for another
                self._file = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        return self._file

    def close(self) -> None:
        if self._file is not None and self._owner == os.getpid():
            os.close(self._file)
        self._file, self._owner = None, -1

    def __del__(self) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None, "_owner": -1}


def keep(
    manifest: Manifest,
    reader: Reader,
    ids: list[str],
    size: tuple[int, int],
    *,
    progress: Callable[[], None] = lambda: None,
) -> tuple[Decoded | None, str]:
    """The decoded samples `ids`, which are the rows of `reader`, and a line for the log, empty if there is no news.

    One process of a machine decodes them, and the others wait for it. Nothing is kept of more than `decoded_gb`, on a
    full or read-only disk, or where a sample cannot be decoded: the training that comes to that one says so.
    progress: called now and then while samples are decoded.
    """
    machine = settings.load()
    limit = int(machine.decoded_gb * 1e9)
    layout = Layout.of(manifest, size)
    total = layout.sample_bytes * len(ids)
    if not limit:
        return None, ""
    if total > limit:
        return None, f"{NOT_KEPT}: they are {total / 1e9:.1f} GB, and decoded_gb is {machine.decoded_gb:g}"
    folder = Path(machine.cache_dir) / "decoded"
    path = folder / f"{key_of(manifest, ids, layout)}.samples"
    if is_whole(path, total):
        return Decoded(path, layout), ""
    try:
        with files.locked(path):
            if is_whole(path, total):
                return Decoded(path, layout), ""
            sweep_up(folder)
            make_room(folder, total, limit, "*.samples")
            if shutil.disk_usage(folder).free < total + SPARE:
                raise OSError(errno.ENOSPC, f"less than {SPARE >> 30} GiB would be left", str(folder))
            write(path, layout, reader, progress)
    except OSError as error:
        return None, f"{NOT_KEPT}: {explain(error, folder)}"
    except UserError:
        return None, ""
    return Decoded(path, layout), f"{len(ids)} training samples are kept decoded, {total / 1e6:.0f} MB ({folder})"


NOT_KEPT = "training samples are decoded in every epoch"


def key_of(manifest: Manifest, ids: list[str], layout: Layout) -> str:
    """All that the pixels depend on: the data, which of it, the size, and what decodes it."""
    decoders = cv2.__version__, simplejpeg.__version__, PIL.__version__
    described = (FORM, manifest.content.fingerprint, *layout, *decoders, *ids)
    return hashlib.sha256("\n".join(map(str, described)).encode()).hexdigest()[:32]


def is_whole(path: Path, total: int) -> bool:
    """Whether the file is there; then it counts as used."""
    try:
        return path.stat().st_size == total and mark_used(path)
    except OSError:
        return False


def part_of(path: Path) -> Path:
    """What a file is called until it is whole. Only the holder of the file's lock writes it."""
    return path.with_name(f".{path.name}.part")


def sweep_up(folder: Path) -> None:
    """Delete what processes left that were killed while they wrote."""
    for part in folder.glob(".*.samples.part"):
        with files.locked_or_refused(part.with_name(part.name[1:].removesuffix(".part"))) as free:
            if free:
                part.unlink(missing_ok=True)


def write(path: Path, layout: Layout, reader: Reader, progress: Callable[[], None]) -> None:
    """Decode all samples of a reader into the file, which is there whole or not at all."""
    part = part_of(path)
    try:
        with part.open("wb") as file:
            for samples in decoded(layout, reader):
                file.write(b"".join(samples))
                progress()
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        mark_used(path)
    finally:
        part.unlink(missing_ok=True)


def decoded(layout: Layout, reader: Reader) -> Iterator[list[bytes]]:
    """The packed samples in their order, some at a time, by as many threads as there are CPUs."""
    own = threading.local()

    def packed(row: int) -> bytes:
        if not hasattr(own, "reader"):
            own.reader = copy.copy(reader)  # one closes what it opened longest ago, which another may be reading
        return layout.pack(stored_pair(own.reader, row, layout.mask))

    with ThreadPoolExecutor(available_cpus(), thread_name_prefix="decode") as threads:
        for start in range(0, len(reader), AT_ONCE):
            yield list(threads.map(packed, range(start, min(len(reader), start + AT_ONCE))))
