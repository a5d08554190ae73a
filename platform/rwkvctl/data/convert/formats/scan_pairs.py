"""An image and its mask, or masks, as files of volumes: one way of checking and reading them, for every data set that
comes so."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rwkvctl.base.errors import BadFile
from rwkvctl.data.convert import voxel_files
from rwkvctl.data.convert.discover import relative
from rwkvctl.data.convert.formats.volumes import Case, Volume, last_two
from rwkvctl.data.convert.sources import RawFile
from rwkvctl.data.convert.voxel_files import VoxelFile
from rwkvctl.data.images import dicom_masks, intensity, normalise
from rwkvctl.data.images import grid as grids
from rwkvctl.data.images.grid import Grid
from rwkvctl.data.images.nifti import Stored
from rwkvctl.data.images.normalise import Rule

ROUNDING = 1e-3
"""Labels that were saved as floats are whole numbers within this."""
OVERLAP = "masks of several classes overlap, the later class was taken"
_SHOWN = 16


@dataclass(frozen=True, kw_only=True)
class ScanCase(Case):
    """A case of an image and its masks. layers: where each mask is of one class, its class id; without them, several
    masks are joined to one."""

    image: VoxelFile
    masks: tuple[VoxelFile, ...]
    layers: tuple[int, ...] = ()
    others: tuple[VoxelFile, ...] = ()
    """The files of the image's further channels."""


class ScanPair(NamedTuple):
    """What the headers of an image and its masks say: the image's grid, and (file, what is doubtful)."""

    image: VoxelFile
    masks: tuple[VoxelFile, ...]
    grid: Grid
    notes: tuple[tuple[RawFile, str], ...]
    layers: tuple[int, ...] = ()
    others: tuple[VoxelFile, ...] = ()

    def case(self, key: str, patient: str, orientation: str, z_digits: int = 3) -> Case:
        depth = grids.depth(self.grid, grids.layout(self.grid, orientation))
        files = tuple(dict.fromkeys(file for own in (self.image, *self.others, *self.masks) for file in own.files))
        own = {"image": self.image, "masks": self.masks, "layers": self.layers, "others": self.others}
        return ScanCase(key, files, depth, patient, z_digits, **own)  # type: ignore[arg-type]


def check(
    image: RawFile | VoxelFile,
    *masks: RawFile | VoxelFile,
    layers: tuple[int, ...] = (),
    others: tuple[VoxelFile, ...] = (),
) -> ScanPair:
    """Read the headers; BadFile when one is damaged, or a mask or another channel does not lie on its image's grid."""
    first, *own_masks = (own if isinstance(own, VoxelFile) else VoxelFile(own) for own in (image, *masks))
    grid = voxel_files.read_grid(first)
    notes = [(first.file, note) for note in grid.notes]
    for file in (*others, *own_masks):
        if file.dicom and file in own_masks:  # says of every frame or contour where it lies
            continue
        own = voxel_files.read_grid(file)
        place = grids.aligned(file, own, first, grid)
        notes += [(file.file, note) for note in (*own.notes, *place.notes)]
    return ScanPair(first, tuple(own_masks), grid, tuple(notes), layers, others)


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


# Reading ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ScanPairLoader:
    """Reads a case. labels: (stored value, class id); window: what values are clipped to, see `intensity`; root: the
    folder in the source from which paths are recorded, without one their last two parts are; advice: against labels
    that no class has."""

    orientation: str
    window: tuple[intensity.Bound, intensity.Bound]
    labels: tuple[tuple[int, int], ...]
    mask_rule: str = "value"
    root: str | None = None
    advice: str = "replace it"
    rules: tuple[Rule, ...] = ()
    """One a channel, see `data.images.normalise`; without them, `window` is that of the only channel."""

    def __call__(self, case: ScanCase) -> Volume:
        sources = voxel_files.digests(case.image)
        for other in case.others:
            sources |= voxel_files.digests(other)
        image = voxel_files.read(case.image)
        layout = grids.layout(image.grid, self.orientation)
        mode = str(image.rescaled(image.voxels[:1, :1, :1]).dtype)
        if self.rules:
            scaled, rule, mode = _normalised(case, image, layout, self.rules)
        else:
            low, high = image.window(*self.window)
            scaled, rule = _scaled(case.image, image, layout, low, high), intensity.rule(low, high)
        grid = image.grid
        del image  # before the masks are in memory
        ids, note = self._ids(case, grid)
        for mask in case.masks:
            sources |= voxel_files.digests(mask)
        return Volume(
            image=scaled,
            ids=np.ascontiguousarray(grids.turned(ids, grid, layout)),
            sources={self._path(file): digest for file, digest in sources.items()},
            meta={
                **grids.geometry(grid, layout),
                "orig_mode": mode,
                "mask_rule": self.mask_rule,
                "intensity": rule,
                **({"image_note": note} if note else {}),
            },
        )

    def _path(self, file: RawFile) -> str:
        return last_two(file) if self.root is None else relative(file, self.root)

    def _ids(self, case: ScanCase, grid: Grid) -> tuple[NDArray[np.uint8], str]:
        """Class ids [x, y, z], and what is to be noted."""
        if case.masks[0].dicom:
            return _drawn(case, grid)
        joined = len(case.masks) > 1 or bool(case.layers)
        if not joined:
            return self._labels(case.masks[0], case, grid), ""
        ids, overlap = np.zeros(grid.shape, np.uint8), False
        for layer, mask in sorted(zip(case.layers or (1,) * len(case.masks), case.masks, strict=True), key=_by_layer):
            own = self._one_class(mask, case, grid)
            overlap = overlap or bool((ids[own] & (ids[own] != layer)).any())
            ids[own] = layer
        return ids, OVERLAP if overlap and case.layers else ""

    def _labels(self, mask: VoxelFile, case: ScanCase, grid: Grid) -> NDArray[np.uint8]:
        """Of a file that has a number for each class."""
        voxels = on_image(mask, case.image, grid)
        values = label_values(mask, voxels)
        known = sorted(stored for stored, _ in self.labels)
        if not set(values) <= set(known):
            shown = ", ".join(f"{value:g}" for value in values[:_SHOWN])
            raise BadFile(f"{mask}: label values [{shown}], expected {_range(known)}; {self.advice}")
        table = np.zeros(max(stored for stored, _ in self.labels) + 1, np.uint8)
        for stored, own in self.labels:
            table[stored] = own
        return mapped(voxels, table)

    def _one_class(self, mask: VoxelFile, case: ScanCase, grid: Grid) -> NDArray[np.bool_]:
        """Of a file that has a number for one class."""
        voxels = on_image(mask, case.image, grid)
        values = [value for value in label_values(mask, voxels) if value]
        if len(values) > 1:
            shown = ", ".join(f"{value:g}" for value in values[:_SHOWN])
            raise BadFile(f"{mask}: has labels {shown}, where a mask of one class has one; give one file an image")
        return np.asarray(voxels != 0)


def _drawn(case: ScanCase, grid: Grid) -> tuple[NDArray[np.uint8], str]:
    """Class ids [x, y, z] of masks that say themselves where they lie."""
    ids, overlap, notes = np.zeros(grid.shape, np.uint8), False, dict[str, None]()
    for mask in case.masks:
        try:
            own = dicom_masks.drawn(Path(mask.file.data), mask.dicom, dict(mask.segments), grid)
        except BadFile as error:
            raise BadFile(str(error).replace(mask.file.data, str(mask), 1)) from error
        overlap = overlap or own.overlap or bool(((ids != 0) & (own.ids != 0)).any())
        np.maximum(ids, own.ids, out=ids)
        notes |= dict.fromkeys(own.notes)
    return ids, "; ".join([*notes, *([OVERLAP] if overlap else [])])


def _range(known: Sequence[int]) -> str:
    whole = list(known) == list(range(known[0], known[-1] + 1))
    return f"{known[0]}..{known[-1]}" if whole else ", ".join(map(str, known[:_SHOWN]))


def _by_layer(own: tuple[int, VoxelFile]) -> int:
    return own[0]


def _scaled(file: VoxelFile, image: Stored, layout: str, low: float, high: float) -> NDArray[np.float32]:
    """The image (D, H, W) in [0, 1], made slice by slice: as a whole, what lies between would take four times as
    much."""
    slices = intensity.ScaledSlices(grids.turned(image.voxels, image.grid, layout), low, high, image.rescaled)
    made = np.empty(slices.shape, np.float32)
    try:
        for z in range(len(slices)):
            made[z] = slices[z]
    except ValueError as error:
        raise BadFile(f"{file}: {error}; replace it") from error
    return made


def _normalised(
    case: ScanCase, image: Stored, layout: str, rules: Sequence[Rule]
) -> tuple[NDArray[np.float32], dict[str, Any], str]:
    """The channels of an image, (D, H, W[, C]), and what its samples' json says of them and of their types."""
    channels = [grids.turned(voxels, image.grid, layout) for voxels in channels_of(case, image)]
    try:
        return *normalise.stacked(channels, rules), ", ".join(str(own.dtype) for own in channels)
    except ValueError as error:
        raise BadFile(f"{case.image}: {error}; replace it") from error


def channels_of(case: ScanCase, image: Stored) -> list[NDArray[Any]]:
    """All channels of a case [x, y, z] on the grid of the first, which was read, in the scanner's numbers."""
    found = [image.rescaled(image.voxels)]
    for other in case.others:
        stored = voxel_files.read(other)
        place = grids.aligned(other, stored.grid, case.image, image.grid)
        found.append(place.on_image(stored.rescaled(stored.voxels)))
    return found


def on_image(mask: VoxelFile, image: VoxelFile, grid: Grid) -> NDArray[Any]:
    """The numbers of a mask [x, y, z], as its image lies."""
    stored = voxel_files.read(mask)
    voxels = grids.aligned(mask, stored.grid, image, grid).on_image(stored.voxels)
    return voxels if stored.slope is None else stored.rescaled(voxels)


def label_values(file: object, voxels: NDArray[Any]) -> list[float]:
    """All numbers of a mask, slice by slice; BadFile where they are none of labels."""
    found: set[float] = set()
    for z in range(voxels.shape[-1]):
        found.update(np.unique(whole_numbers(file, voxels[..., z])).tolist())
    return sorted(found)


def mapped(voxels: NDArray[Any], table: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Labels by a table, slice by slice."""
    ids = np.empty(voxels.shape, np.uint8)
    for z in range(voxels.shape[2]):
        ids[..., z] = table[np.rint(voxels[..., z]).astype(np.int64)]
    return ids


def whole_numbers(file: object, voxels: NDArray[Any]) -> NDArray[Any]:
    """Labels as they were meant: floats are rounded when they are whole numbers but for rounding errors."""
    if voxels.dtype.kind != "f":
        return voxels
    rounded = np.rint(voxels)
    off = np.abs(voxels - rounded) > ROUNDING
    if off.any() or not np.isfinite(voxels).all():
        examples = ", ".join(f"{value:g}" for value in np.unique(voxels[off | ~np.isfinite(voxels)])[:3])
        raise BadFile(f"{file}: label values {examples} are not whole numbers; save the labels as integers")
    return rounded
