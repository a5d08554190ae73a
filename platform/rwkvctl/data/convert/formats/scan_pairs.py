"""An image and its mask as two NIfTI files: one way of checking and reading them, for every data set that comes so."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rwkvctl.base.errors import BadFile
from rwkvctl.data.convert.formats.base import sha256
from rwkvctl.data.convert.formats.volumes import Case, Volume, check_labels, last_two, scaled
from rwkvctl.data.convert.sources import RawFile
from rwkvctl.data.images import grid as grids
from rwkvctl.data.images import intensity, nifti
from rwkvctl.data.images.grid import Grid

ROUNDING = 1e-3
"""Labels that were saved as floats are whole numbers within this."""


class ScanPair(NamedTuple):
    """What the headers of an image and its mask say: the image's grid, and (file, what is doubtful)."""

    image: RawFile
    mask: RawFile
    grid: Grid
    notes: tuple[tuple[RawFile, str], ...]

    def case(self, key: str, patient: str, orientation: str, z_digits: int = 3) -> Case:
        depth = grids.depth(self.grid, grids.layout(self.grid, orientation))
        return Case(key, (self.image, self.mask), depth, patient, z_digits)


def check(image: RawFile, mask: RawFile) -> ScanPair:
    """Read both headers; BadFile when one is damaged, or the mask does not lie on its image's grid."""
    grid, own = nifti.read_grid(image), nifti.read_grid(mask)
    place = grids.aligned(mask, own, image, grid)
    notes = [(image, note) for note in grid.notes] + [(mask, note) for note in (*own.notes, *place.notes)]
    return ScanPair(image, mask, grid, tuple(notes))


def warnings(pairs: Sequence[ScanPair], orientation: str) -> list[str]:
    """What is doubtful in the headers of a data set's scans, counted by kind with the first file of each; whether they
    are stored along different axes, and whether some are sliced across others than most."""
    kinds: dict[str, list[tuple[RawFile, str]]] = {}
    for file, note in (own for pair in pairs for own in pair.notes):
        kinds.setdefault(note.partition(" (")[0], []).append((file, note))
    found = []
    for own in kinds.values():
        file, note = own[0]
        found.append(f"{_files(len(own))}: {note}; first {file.name}")
    axes = Counter(pair.grid.axes for pair in pairs if pair.grid.oriented)
    stored = grids.axes_of(orientation)
    if len(axes) > 1:
        counts = ", ".join(f"{n} {name}" for name, n in sorted(axes.items()))
        found.append(f"scans are stored along different axes ({counts}); all were turned to {stored}")
    across = Counter(made for pair in pairs if (made := grids.layout(pair.grid, orientation)) != orientation)
    for made, n in sorted(across.items()):
        found.append(
            f"{n} of {len(pairs)} scans are thick along another axis and are sliced across it: {made}, not {stored}"
        )
    return found


def _files(n: int) -> str:
    return f"{n} file{'s' if n > 1 else ''}"


@dataclass(frozen=True)
class ScanPairLoader:
    """Reads a case. labels: (stored value, class id); window: what values are clipped to, see `intensity`."""

    orientation: str
    window: tuple[intensity.Bound, intensity.Bound]
    labels: tuple[tuple[int, int], ...]
    mask_rule: str = "value"

    def __call__(self, case: Case) -> Volume:
        image_file, mask_file = case.files
        image, mask = nifti.read(image_file), nifti.read(mask_file)
        place = grids.aligned(mask_file, mask.grid, image_file, image.grid)
        layout = grids.layout(image.grid, self.orientation)
        low, high = intensity.window(image.voxels, *self.window)
        return Volume(
            image=scaled(image_file, grids.turned(image.voxels, image.grid, layout), low, high),
            ids=grids.turned(self._ids(mask_file, place.on_image(mask.voxels)), image.grid, layout),
            sources={last_two(image_file): sha256(image.data), last_two(mask_file): sha256(mask.data)},
            meta={
                **grids.geometry(image.grid, layout),
                "orig_mode": str(image.voxels.dtype),
                "mask_rule": self.mask_rule,
                "intensity": intensity.rule(low, high),
            },
        )

    def _ids(self, file: RawFile, voxels: NDArray[Any]) -> NDArray[np.uint8]:
        labels = whole_numbers(file, voxels)
        check_labels(file, labels, [stored for stored, _ in self.labels])
        table = np.zeros(256, np.uint8)
        for stored, own in self.labels:
            table[stored] = own
        return table[labels.astype(np.uint8)]


def whole_numbers(file: RawFile, voxels: NDArray[Any]) -> NDArray[Any]:
    """Labels as they were meant: floats are rounded when they are whole numbers but for rounding errors."""
    if voxels.dtype.kind != "f":
        return voxels
    rounded = np.rint(voxels)
    off = np.abs(voxels - rounded) > ROUNDING
    if off.any() or not np.isfinite(voxels).all():
        examples = ", ".join(f"{value:g}" for value in np.unique(voxels[off | ~np.isfinite(voxels)])[:3])
        raise BadFile(f"{file}: label values {examples} are not whole numbers; save the labels as integers")
    return rounded
