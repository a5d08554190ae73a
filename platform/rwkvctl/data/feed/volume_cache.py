"""The training volumes at the spacing of a training: read whole, resampled, and kept on this machine.

What is kept of a case is one file in the cache: its channels, its mask, and where its classes are. Patches are read out
of it without the rest. Who does not find it there resamples the volume again, which gives the same voxels.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from rwkvctl.base import files
from rwkvctl.base.errors import UserError, explain
from rwkvctl.config import settings
from rwkvctl.data.feed import cases
from rwkvctl.data.feed.resample import Shape, Spacing, resize_image, resize_mask, shape_at
from rwkvctl.data.store.manifest import Manifest
from rwkvctl.data.store.reader import Reader
from rwkvctl.data.store.shards import make_room, mark_used

FORM = 1
"""Of the files. Another one where resampling gives other voxels, so that older files are not read."""
MOST_VOXELS = 20_000
"""Of a class that are kept of a case, evenly from all of them."""
SPARE = 5 << 30
"""Bytes that a disk has left at least."""
IMAGE, MASK, CLASS = "image", "mask", "class_"

Box = tuple[slice, slice, slice]


class Resampled(NamedTuple):
    """A case as it is trained on: float32 (C, D, H, W), uint8 (D, H, W), and of every class of the foreground some of
    its voxels, int32 (n, 3)."""

    image: NDArray[np.float32]
    mask: NDArray[np.uint8]
    voxels: dict[int, NDArray[np.int32]]

    @property
    def shape(self) -> Shape:
        return self.mask.shape

    @property
    def classes(self) -> list[int]:
        """Of the foreground, in their order."""
        return sorted(self.voxels)

    def voxels_of(self, class_id: int) -> NDArray[np.int32]:
        return self.voxels[class_id]

    def read(self, box: Box) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """A part of both."""
        return self.image[:, *box], self.mask[box]


class Kept:
    """A case in a file of the cache; what is asked for is read."""

    def __init__(self, path: Path):
        self._file: Any = safe_open(path, framework="np")
        self.shape: Shape = tuple(self._file.get_slice(MASK).get_shape())
        names = [name for name in self._file.keys() if name.startswith(CLASS)]  # noqa: SIM118  no mapping
        self.classes = sorted(int(name.removeprefix(CLASS)) for name in names)

    def voxels_of(self, class_id: int) -> NDArray[np.int32]:
        found: NDArray[np.int32] = self._file.get_tensor(f"{CLASS}{class_id}")
        return found

    def read(self, box: Box) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        return self._file.get_slice(IMAGE)[:, *box], self._file.get_slice(MASK)[box]


class Volume(Protocol):
    """`Resampled` or `Kept`."""

    @property
    def shape(self) -> Shape: ...

    @property
    def classes(self) -> list[int]: ...

    def voxels_of(self, class_id: int) -> NDArray[np.int32]: ...

    def read(self, box: Box) -> tuple[NDArray[np.float32], NDArray[np.uint8]]: ...


class Volumes:
    """The cases of a reader at a spacing, by their row; None leaves them as they are. It may be pickled."""

    def __init__(self, manifest: Manifest, reader: Reader, spacing: Spacing | None):
        self.manifest, self.reader, self.spacing = manifest, reader, spacing
        self.kept = False
        self._last: tuple[int, Volume] | None = None

    def __len__(self) -> int:
        return len(self.reader)

    def volume(self, row: int) -> Volume:
        """Opened, or where it is not kept resampled; the last one stays."""
        if self._last is None or self._last[0] != row:
            self._last = None  # never two of them in memory
            self._last = row, self._opened(row) or resampled(self.reader, row, self.spacing, self.manifest.ignore_index)
        return self._last[1]

    def _opened(self, row: int) -> Kept | None:
        if not self.kept:
            return None
        with contextlib.suppress(OSError, SafetensorError):  # it made room for others, or is damaged
            return Kept(self.path(row))
        return None

    def path(self, row: int) -> Path:
        """Where a case is kept: by all that its voxels depend on."""
        spacing = self.spacing or ()
        described = (FORM, self.manifest.content.fingerprint, self.reader.key(row), *spacing, torch.__version__)
        name = hashlib.sha256("\n".join(map(str, described)).encode()).hexdigest()[:32]
        return folder() / f"{name}.safetensors"

    def bytes(self, row: int) -> int:
        """About what a case takes, without reading it."""
        shape = shape_of(self.reader, row, self.spacing)
        return int(np.prod(shape)) * (4 * self.manifest.channels + 1) + (MOST_VOXELS * 12)

    def keep(self, progress: Callable[[], None] = lambda: None) -> str:
        """Resample every case that is not there yet, and read from the files from now on; a line for the log, empty if
        there is no news.

        One process of a machine resamples a case, the others wait for it. Nothing is kept of more than `decoded_gb`, or
        on a full or read-only disk.
        """
        limit = int(settings.load().decoded_gb * 1e9)
        total = sum(map(self.bytes, range(len(self))))
        if not limit:
            return ""
        if total > limit:
            return f"{NOT_KEPT}: they are {total / 1e9:.1f} GB, and decoded_gb is {limit / 1e9:g}"
        made = 0
        try:
            missing = [row for row in range(len(self)) if not there(self.path(row))]
            if missing:
                needed = sum(map(self.bytes, missing))
                make_room(folder(), needed, limit, "*.safetensors")
                if shutil.disk_usage(folder()).free < needed + SPARE:
                    raise OSError(errno.ENOSPC, f"less than {SPARE >> 30} GiB would be left", str(folder()))
            for row in missing:
                made += self._keep(row)
                progress()
        except OSError as error:
            return f"{NOT_KEPT}: {explain(error, folder())}"
        self.kept = True
        what = "as they are" if self.spacing is None else f"at {' x '.join(f'{mm:g}' for mm in self.spacing)} mm"
        return f"{made} training volumes are kept {what}, {total / 1e6:.0f} MB ({folder()})" if made else ""

    def _keep(self, row: int) -> bool:
        path = self.path(row)
        with files.locked(path):
            if there(path):
                return False
            found = resampled(self.reader, row, self.spacing, self.manifest.ignore_index)
            arrays: dict[str, NDArray[Any]] = {IMAGE: found.image, MASK: found.mask}
            arrays |= {f"{CLASS}{class_id}": voxels for class_id, voxels in found.voxels.items()}
            files.write_bytes(path, save(arrays))
            return mark_used(path)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_last": None}


NOT_KEPT = "training volumes are resampled whenever they are read"


def folder() -> Path:
    """Where volumes are kept."""
    return Path(settings.load().cache_dir) / "volumes"


def there(path: Path) -> bool:
    """Whether the file is there; then it counts as used."""
    try:
        return path.stat().st_size > 0 and mark_used(path)
    except OSError:
        return False


def spacing_of(reader: Reader, row: int) -> Spacing | None:
    """mm along z, y, x; None where the source does not tell."""
    found = cases.spacing_of(reader.meta(row))
    return None if found is None else (found[0], found[1], found[2])


def native_shape(reader: Reader, row: int) -> Shape:
    """(D, H, W) of a case, by the header of its mask."""
    shape = reader.npy_shape(row, "mask.npy")
    if len(shape) != 3:
        raise UserError(f"{reader.key(row)}: is no volume but an image {shape}; leave out volumes to train on images")
    return shape


def shape_of(reader: Reader, row: int, spacing: Spacing | None) -> Shape:
    """(D, H, W) of a case at a spacing."""
    native = native_shape(reader, row)
    if spacing is None:
        return native
    own = spacing_of(reader, row)
    if own is None:
        raise UserError(
            f"{reader.key(row)}: has no spacing, so it cannot be brought to {list(spacing)} mm; "
            "set volumes.spacing=native, or prepare the data from files that have it"
        )
    return shape_at(native, own, spacing)


def resampled(reader: Reader, row: int, spacing: Spacing | None, ignore_index: int | None) -> Resampled:
    """A case as it is trained on, from its shard. UserError for voxels that are not finite, or a mask of another
    extent."""
    shape, case = shape_of(reader, row, spacing), cases.read_case(reader, row)
    volume = np.asarray(case.image)
    if not np.isfinite(volume).all():
        raise UserError(f"{case.key}: image holds NaN or infinite values; prepare the data again")
    channels = np.ascontiguousarray(np.moveaxis(volume, -1, 0) if volume.ndim == 4 else volume[None])
    image, small = resize_image(torch.from_numpy(channels), shape).contiguous().numpy(), resize_mask(case.mask, shape)
    return Resampled(image, small, {value: some_of(small, value) for value in foreground(small, ignore_index)})


def foreground(mask: NDArray[np.uint8], ignore_index: int | None) -> list[int]:
    """The classes that are there."""
    return [int(value) for value in np.unique(mask) if value not in (0, ignore_index)]


def some_of(mask: NDArray[np.uint8], class_id: int) -> NDArray[np.int32]:
    """(n, 3) voxels of a class, in their order, every k-th of many."""
    places = np.flatnonzero(mask == class_id)
    places = places[:: -(-len(places) // MOST_VOXELS)]
    return np.stack(np.unravel_index(places, mask.shape), axis=1).astype(np.int32)
