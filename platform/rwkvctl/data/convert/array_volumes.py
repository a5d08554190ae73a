"""Volumes and stacks of slices as arrays: their grid, and their voxels. They lie as slices are looked at: from the feet
up, front at the top, the patient's right at the left, which nothing in such a file says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwkvctl.base.errors import BadFile
from rwkvctl.data.convert.array_roles import plain
from rwkvctl.data.convert.raw_files import RawFile
from rwkvctl.data.images import arrays
from rwkvctl.data.images.arrays import Entry
from rwkvctl.data.images.grid import Grid
from rwkvctl.data.images.nifti import Stored

REVERSED = "the spacing beside an array is taken to be x, y, z"


def entry(file: RawFile, name: str) -> Entry:
    """The array of a file by its name, "" for the only one; BadFile where it is not there."""
    found = [own for own in arrays.listed(file) if len(own.shape) > 1 and own.name == (name or own.name)]
    if len(found) == 1:
        return found[0]
    if name:
        raise BadFile(f"{file}: has no array {name!r}; add it, or move the file elsewhere")
    there = ", ".join(own.name for own in found)
    with_both = "; data prepare arrays takes files with image and label inside" if found else ""
    raise BadFile(f"{file}: holds {len(found)} arrays ({there}), where one was expected{with_both}")


def read_grid(files: Sequence[RawFile], name: str, axes: str) -> Grid:
    """Of one file with a volume, or of slices."""
    own = entry(files[0], name)
    shape = plain(own.shape)
    axes = _axes(shape, axes)
    if len(shape) != len(axes):
        raise BadFile(f"{files[0]}: {own.name or 'its array'} has shape {own.shape}; {len(axes)} axes were expected")
    size = {axis: shape[n] for n, axis in enumerate(axes)} | ({} if "z" in axes else {"z": len(files)})
    spacing, notes = _spacing(own, axes.replace("c", ""))
    steps = [spacing.get(axis, 1.0) for axis in "xyz"]
    affine = np.diag([-steps[0], -steps[1], steps[2], 1.0])
    measured = all(axis in spacing for axis in "xyz")
    return Grid(affine, (size["x"], size["y"], size["z"]), oriented=False, notes=notes, measured=measured)


def _spacing(own: Entry, axes: str) -> tuple[dict[str, float], tuple[str, ...]]:
    """mm by axis, as the axes are stored; but from x to z, where only so the pixels are square."""
    if own.spacing is None or len(own.spacing) not in (len(axes), len(own.shape)):
        return {}, ()
    steps = own.spacing
    if len(steps) != len(axes):
        steps = tuple(step for step, n in zip(steps, own.shape, strict=True) if n != 1)
    if len(steps) != len(axes):
        return {}, ()
    stored, turned = dict(zip(axes, steps, strict=True)), dict(zip("xyz", steps, strict=False))
    if len(axes) == 3 and not np.isclose(stored["x"], stored["y"]) and np.isclose(turned["x"], turned["y"]):
        return turned, (REVERSED,)
    return stored, ()


def read(files: Sequence[RawFile], name: str, axes: str, channel: int = 0) -> Stored:
    """One channel of an array that has `c` among its axes. BadFile for what is damaged, or slices of several sizes."""
    grid = read_grid(files, name, axes)
    own_entry = entry(files[0], name)
    name, axes = own_entry.name, _axes(plain(own_entry.shape), axes)
    first, all_axes, axes = _channel(files[0], name, axes, channel), axes, axes.replace("c", "")
    if "z" in axes:
        return Stored(first.transpose([axes.index(axis) for axis in "xyz"]), grid, None, None, None)
    voxels = np.empty((*first.shape, len(files)), first.dtype)
    for z, file in enumerate(files):
        own = first if z == 0 else _channel(file, name, all_axes, channel)
        if own.shape != first.shape:
            raise BadFile(f"{file}: has shape {own.shape}, {files[0].name} has {first.shape}; give slices one size")
        voxels[..., z] = own
    return Stored(voxels.transpose([axes.index("x"), axes.index("y"), 2]), grid, None, None, None)


def _axes(shape: tuple[int, ...], axes: str) -> str:
    """A picture where volumes were expected is one of one slice."""
    return "yx" if len(shape) == 2 and axes == "zyx" else axes


def _channel(file: RawFile, name: str, axes: str, channel: int) -> NDArray[Any]:
    """The array without its axis `c`, if it has one."""
    own = _whole(arrays.read(file, name))
    return own.take(channel, axes.index("c")) if "c" in axes and own.ndim == len(axes) else own


def _whole(array: NDArray[Any]) -> NDArray[Any]:
    """Without axes of one element; numbers in place of truth values."""
    own = array.reshape(plain(array.shape))
    return own.astype(np.uint8) if own.dtype == bool else own
