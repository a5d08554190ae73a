"""Whole cases at their native resolution, for segmentation metrics."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rwkvctl.base.errors import UserError
from rwkvctl.data.store.manifest import Manifest
from rwkvctl.data.store.reader import Reader, reader_for


class Case(NamedTuple):
    """A sample at its native resolution.

    image: uint8 (H, W, 3), float32 (H, W) or float32 (D, H, W), which is read slice by slice as it is used;
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
    if manifest.task != "segmentation":
        raise UserError(f"{manifest.dataset} is a classification set; it has no cases with masks")
    reader = reader_for(manifest, manifest.ids(split, part)[rank::world_size])
    return (_case(reader, row) for row in range(len(reader)))


def _case(reader: Reader, row: int) -> Case:
    meta = reader.meta(row)
    spacing = meta.get("spacing_mm")
    mask = reader.mask(row)
    image = reader.volume(row) if mask.ndim == 3 else reader.image(row)
    if image.shape[: mask.ndim] != mask.shape:
        raise UserError(f"{reader.key(row)}: image {image.shape} and mask {mask.shape} differ; prepare the data again")
    return Case(reader.key(row), image, mask, tuple(map(float, spacing)) if spacing else None, meta)
