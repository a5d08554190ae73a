"""Cases at their native resolution, for segmentation metrics: whole, or as resized slices in batches across cases."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from rwkvctl.base.errors import UserError
from rwkvctl.data.feed import transforms
from rwkvctl.data.feed.loader_processes import data_loader, plain_errors, shut_down
from rwkvctl.data.feed.samples import Item, Samples, one_thread, size_of
from rwkvctl.data.store.case_reader import reader_for
from rwkvctl.data.store.manifest import Manifest
from rwkvctl.data.store.reader import Reader


class Case(NamedTuple):
    """A sample at its native resolution.

    image: uint8 (H, W, 3), float32 (H, W[, C]) or float32 (D, H, W[, C]), read slice by slice as it is used;
    mask: uint8 of the same extent;
    spacing_mm: [z,] y, x or None when the source does not tell; meta: the sample's json.
    """

    key: str
    image: NDArray[np.uint8] | NDArray[np.float32]
    mask: NDArray[np.uint8]
    spacing_mm: tuple[float, ...] | None
    meta: dict[str, Any]


def iter_cases(
    manifest: Manifest, *, split: str | None, part: str, rank: int = 0, world_size: int = 1
) -> Iterator[Case]:
    """The cases of a part, one at a time in memory; rank r of W has the ids r, r+W, ..."""
    reader = case_reader(manifest, split=split, part=part, rank=rank, world_size=world_size)
    return (read_case(reader, row) for row in range(len(reader)))


def case_reader(manifest: Manifest, *, split: str | None, part: str, rank: int, world_size: int) -> Reader:
    """A reader of the cases r, r+W, ... of a part."""
    if manifest.task != "segmentation":
        raise UserError(f"{manifest.dataset} is a classification set; it has no cases with masks")
    return reader_for(manifest, manifest.ids(split, part)[rank::world_size])


def read_case(reader: Reader, row: int) -> Case:
    meta = reader.meta(row)
    mask = reader.mask(row)
    image = reader.volume(row) if mask.ndim == 3 else reader.image(row)
    _check_extent(reader.key(row), image.shape[: mask.ndim], mask.shape)
    return Case(reader.key(row), image, mask, spacing_of(meta), meta)


def spacing_of(meta: dict[str, Any]) -> tuple[float, ...] | None:
    """The size of a voxel by a sample's json."""
    spacing = meta.get("spacing_mm")
    return tuple(map(float, spacing)) if spacing else None


def _check_extent(key: str, image: tuple[int, ...], mask: tuple[int, ...]) -> None:
    if image != mask:
        raise UserError(f"{key}: image {image} and mask {mask} differ; prepare the data again")


# Slices -------------------------------------------------------------------------------------------------------------


class Place(NamedTuple):
    """Where a slice is from: row of the reader; position and number of slices, 0 and 0 for an image; native size."""

    row: int
    z: int
    depth: int
    height: int
    width: int

    @property
    def last(self) -> bool:
        """Whether it is the last of its case."""
        return self.z + 1 >= self.depth


class SliceBatch(NamedTuple):
    """images uint8 (B, 3, H, W) or float32 (B, C, H, W) at the network's size, and where each is from."""

    images: torch.Tensor
    places: list[Place]


class SliceLoader:
    """The slices of all cases of a reader and its images, in their order, `batch` at a time whatever case they are of.

    Loader processes read, decode and resize them; with `workers` 0 this process does. No volume is read as a whole.
    """

    def __init__(self, reader: Reader, *, image_size: int | tuple[int, int], batch: int, workers: int):
        dataset = CaseSlices(reader, size_of(image_size))
        self._loader = data_loader(dataset, _Batches(dataset, batch), workers)

    def __iter__(self) -> Iterator[SliceBatch]:
        for batch in plain_errors(iter(self._loader)):
            yield SliceBatch(batch.images, [Place(*place) for place in batch.targets.tolist()])

    def close(self) -> None:
        """End the worker processes."""
        shut_down(self._loader)


class CaseSlices(Samples):
    """(row, z) -> image, place, key."""

    def __init__(self, reader: Reader, size: tuple[int, int]):
        super().__init__(reader, 0)
        self.size = size
        self._open: tuple[int, NDArray[Any]] | None = None

    def __getitem__(self, position: tuple[int, int]) -> Item:
        row, z = position
        with one_thread():
            whole, depth = self._case(row)
            image = whole[z] if depth else whole
            if image.dtype != np.uint8 and not np.isfinite(image).all():
                raise UserError(f"{self.reader.key(row)}: image holds NaN or infinite values; prepare the data again")
            resized = transforms.to_tensor(transforms.resize_image(image, self.size))
            place = Place(row, z, depth, *image.shape[:2])
            return resized, torch.tensor(place), self.reader.key(row)

    def _case(self, row: int) -> tuple[NDArray[Any], int]:
        """The image or the volume, which is open and not read, and its number of slices."""
        depth = self.depth(row)
        if not depth:
            return self.reader.image(row), 0
        if self._open is None or self._open[0] != row:
            self._open = row, self.reader.volume(row)
        return self._open[1], depth

    def depth(self, row: int) -> int:
        """How many slices a volume has; 0 for an image."""
        if not self.reader.has(row, "mask.npy"):
            return 0
        mask = self.reader.npy_shape(row, "mask.npy")
        if len(mask) == 2:
            return 0
        _check_extent(self.reader.key(row), self.reader.npy_shape(row, "image.npy")[: len(mask)], mask)
        return mask[0]


class _Batches:
    """The batch sampler: the slices of a case after those of the one before. Headers are read as it goes on."""

    def __init__(self, dataset: CaseSlices, batch: int):
        self._dataset, self._batch = dataset, batch

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        batch: list[tuple[int, int]] = []
        for row in range(len(self._dataset)):
            for z in range(max(1, self._dataset.depth(row))):
                batch.append((row, z))
                if len(batch) == self._batch:
                    yield batch
                    batch = []
        if batch:
            yield batch
