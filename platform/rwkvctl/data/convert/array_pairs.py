"""An image and its label in one file of arrays: what its header says of both, and the channels and classes in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rwkvctl.base.errors import BadFile
from rwkvctl.data.convert import array_roles
from rwkvctl.data.convert.array_roles import Channels, Roles
from rwkvctl.data.convert.raw_files import RawFile
from rwkvctl.data.convert.voxel_files import VoxelFile
from rwkvctl.data.images import arrays
from rwkvctl.data.images.arrays import Entry


@dataclass(frozen=True)
class ArrayPair:
    """A file with an image and a label inside, and which of their axes are no axes of space."""

    file: RawFile
    image: Entry
    label: Entry
    channels: Channels
    others: tuple[Entry, ...] = ()
    """Arrays with further channels of the image, of its shape."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of its slice or volume."""
        return array_roles.without(array_roles.plain(self.image.shape), self.channels.image)

    @property
    def counts(self) -> tuple[int, int]:
        """How many channels the image has, and how many planes the label: 1 of one that has class ids."""
        each = _count(self.image, self.channels.image)
        return each * (1 + len(self.others)), _count(self.label, self.channels.label)


def _count(own: Entry, axis: int | None) -> int:
    return 1 if axis is None else array_roles.plain(own.shape)[axis]


def read_header(file: RawFile, roles: Roles, axes: str | None = None) -> ArrayPair:
    """BadFile where the file lacks one of the arrays, or they do not fit. axes: as the user says, with `c` where an
    image has channels, and a label of as many axes a plane a class."""
    entries = {entry.name: entry for entry in arrays.listed(file)}
    missing = [name for name in (roles.image, *roles.others, roles.label) if name not in entries]
    if missing:
        there = ", ".join(entries) or "none"
        raise BadFile(f"{file}: has no array {missing[0]!r} (there is {there}); --inside names those that it has")
    image, label = entries[roles.image], entries[roles.label]
    shapes = array_roles.plain(image.shape), array_roles.plain(label.shape)
    found = array_roles.channels(*shapes)
    if axes is not None and "c" in axes:
        where = axes.index("c")
        found = Channels(where, where if len(shapes[1]) == len(axes) else None)
        if len(shapes[0]) != len(axes):
            raise BadFile(f"{file}: {roles.image} has shape {image.shape}, --axes {axes} has {len(axes)} axes")
    if found is None:
        raise BadFile(f"{file}: {roles.image} has shape {image.shape}, {roles.label} {label.shape}; give them one")
    others = tuple(entries[name] for name in roles.others)
    for own in others:
        if own.shape != image.shape:
            raise BadFile(f"{file}: {own.name} has shape {own.shape}, {roles.image} {image.shape}; give them one")
    return ArrayPair(file, image, label, found, others)


def usual_counts(pairs: Sequence[ArrayPair]) -> tuple[int, int]:
    """Of channels and planes, what most files have."""
    return Counter(pair.counts for pair in pairs).most_common(1)[0][0] if pairs else (1, 1)


def difference(pair: ArrayPair, usual: tuple[int, int]) -> str:
    """What other files have more or less of, channels or classes; "" where they are the same."""
    arrays_of = (pair.image, pair.label)
    for own, count, wanted, what in zip(arrays_of, pair.counts, usual, ("channels", "planes"), strict=True):
        if count != wanted:
            return f"{own.name} has {count} {what} {own.shape}, the others have {wanted}; give all as many"
    return ""


def layers(pairs: Sequence[ArrayPair]) -> tuple[int, ...]:
    """The class of each plane of a label that has a plane a class, () where it has class ids.

    The first is the background if in some files every pixel is of exactly one plane.
    """
    count = usual_counts(pairs)[1]
    if count == 1:
        return ()
    whole = all((_planes(pair) != 0).sum(axis=0).min() == 1 == (_planes(pair) != 0).sum(axis=0).max() for pair in pairs)
    return tuple(range(count)) if whole else tuple(range(1, count + 1))


def _planes(pair: ArrayPair) -> np.ndarray:
    label = arrays.read(pair.file, pair.label.name)
    return np.moveaxis(label.reshape(array_roles.plain(label.shape)), pair.channels.label or 0, 0)


@dataclass(frozen=True)
class ArrayScans:
    """What of a file, or of the slices of a volume, is the image with its further channels, and what the masks."""

    image: VoxelFile
    others: tuple[VoxelFile, ...]
    masks: tuple[VoxelFile, ...]
    layers: tuple[int, ...]


def scans(pair: ArrayPair, axes: str, own_layers: Sequence[int], slices: tuple[RawFile, ...] = ()) -> ArrayScans:
    """axes: those of space; own_layers: as `layers`."""
    image, *others = (
        own
        for entry in (pair.image, *pair.others)
        for own in _voxels(pair.file, entry, pair.channels.image, axes, slices)
    )
    masks = _voxels(pair.file, pair.label, pair.channels.label, axes, slices)
    kept = [(mask, layer) for mask, layer in zip(masks, own_layers, strict=True) if layer] if own_layers else []
    return ArrayScans(
        image,
        tuple(others),
        tuple(mask for mask, _ in kept) if kept else tuple(masks),
        tuple(layer for _, layer in kept),
    )


def _voxels(file: RawFile, own: Entry, axis: int | None, axes: str, slices: tuple[RawFile, ...]) -> list[VoxelFile]:
    """One a channel."""
    stored = axes if axis is None else f"{axes[:axis]}c{axes[axis:]}"
    count = _count(own, axis)
    return [
        VoxelFile(file, array=own.name, axes=stored, slices=slices, channel=number, channels=count)
        for number in range(count)
    ]
