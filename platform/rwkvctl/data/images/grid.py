"""Where a scan's voxels lie in the body: the grid of a file, the axes of stored volumes, and the way between the two.

Axes are named by where they lead, as nibabel does: R(ight) or L(eft), A(nterior) or P(osterior), S(uperior) or
I(nferior). A file in "LAS" counts its first index towards the left, a stored volume in "SPL" its slices upwards.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from rwkvctl.base.errors import BadFile

ORIENTATIONS = {"itk": "SPL", "emcad": "SLA", "transunet": "SLP"}
"""Names of stored orientations -> axes (slice, row, column). `itk` is what SimpleITK gives of a file whose axes are
ITK's own, and how a scan is looked at; the others are two public readings of Synapse, whose files are LAS. A model that
was trained in one of them does not work in another."""

THICK = 2.0
"""An axis whose voxels are so many times as long as along both others is the one that the scanner sliced."""
ACROSS = {"S": "SPL", "A": "AIL", "R": "RIP"}
"""Slices across the body's axes, as they are looked at: feet to head, back to front, left to right."""
_TOWARDS = str.maketrans("LPI", "RAS")

SPACING_TOLERANCE_MM = 1e-3
PLACE_TOLERANCE_VOXELS = 0.51
"""Half a voxel: programs differ in whether an origin is a voxel's centre or its corner."""


class Named(Protocol):
    """A file; `str` of it is how messages name it."""

    @property
    def name(self) -> str: ...


class Grid(NamedTuple):
    """The affine (4, 4) of a file, from voxel [x, y, z] to mm (NIfTI's RAS), and its shape.

    oriented: False where the header does not tell the axes; notes: what is doubtful in the header, one line each;
    measured: False where nothing tells the spacing, and 1 mm stands for it.
    """

    affine: NDArray[np.float64]
    shape: tuple[int, ...]
    oriented: bool = True
    notes: tuple[str, ...] = ()
    measured: bool = True

    @property
    def spacing(self) -> tuple[float, ...]:
        """mm along x, y, z."""
        return tuple(float(step) for step in np.linalg.norm(self.affine[:3, :3], axis=0))

    @property
    def axes(self) -> str:
        """Where x, y and z lead, for example LAS; of an oblique grid, the nearest axes of the body."""
        import nibabel

        return "".join(nibabel.aff2axcodes(self.affine))


# Stored axes ---------------------------------------------------------------------------------------------------------


def is_orientation(text: str) -> bool:
    return text in ORIENTATIONS or (len(text) == 3 and sorted(text.translate(_TOWARDS)) == ["A", "R", "S"])


def axes_of(orientation: str) -> str:
    """The axes (slice, row, column) of a named orientation, or of one that is given as axes."""
    assert is_orientation(orientation), orientation
    return ORIENTATIONS.get(orientation, orientation)


def thick_axis(grid: Grid) -> str | None:
    """R, A or S: the body's axis that the scanner sliced; None where no axis stands out."""
    spacing, axes = grid.spacing, grid.axes.translate(_TOWARDS)
    if grid.shape.count(1) == 1:
        return axes[grid.shape.index(1)]
    longest = int(np.argmax(spacing))
    others = max(spacing[:longest] + spacing[longest + 1 :])
    return axes[longest] if spacing[longest] >= THICK * others * (1 - 1e-6) else None


def layout(grid: Grid, orientation: str) -> str:
    """How a scan's volume is stored: in `orientation`, unless its thick axis is another than the one that is sliced
    there; then slices go across the thick axis, and the axes (slice, row, column) are returned."""
    thick = thick_axis(grid)
    usual = axes_of(orientation)[0].translate(_TOWARDS)
    return orientation if thick in (None, usual) else ACROSS[thick or usual]


def usual_layout(grids: Iterable[Grid], orientation: str) -> str:
    """The orientation of a set of scans, from the thick axis that most of them have; without any, `orientation`."""
    thick = Counter(axis for grid in grids if (axis := thick_axis(grid)))
    usual = axes_of(orientation)[0].translate(_TOWARDS)
    if not thick:
        return orientation
    most = max(thick, key=lambda axis: (thick[axis], axis == usual, axis))
    return orientation if most == usual else ACROSS[most]


def turned(voxels: NDArray[Any], grid: Grid, orientation: str) -> NDArray[Any]:
    """[x, y, z] of a file to the stored (D, H, W)."""
    return _reordered(voxels, grid.axes, axes_of(orientation))


def turned_back(volume: NDArray[Any], meta: Mapping[str, Any]) -> NDArray[Any]:
    """The inverse of `turned`: a stored (D, H, W) to [x, y, z] of its file, given the sample's json (or `geometry`)."""
    return _reordered(volume, axes_of(meta["orientation"]), meta["axes"])


def turned_again(voxels: NDArray[Any], meta: Mapping[str, Any]) -> NDArray[Any]:
    """The inverse of `turned_back`: [x, y, z] of a file to the stored (D, H, W)."""
    return _reordered(voxels, meta["axes"], axes_of(meta["orientation"]))


def depth(grid: Grid, orientation: str) -> int:
    """The number of slices that a file has when it is stored."""
    return grid.shape[_places(grid.axes, axes_of(orientation))[0]]


def _places(source: str, target: str) -> list[int]:
    """For each axis of `target`, which of `source` it is."""
    along = source.translate(_TOWARDS)
    return [along.index(axis) for axis in target.translate(_TOWARDS)]


def _reordered(array: NDArray[Any], source: str, target: str) -> NDArray[Any]:
    import nibabel.orientations as nibabel

    have, want = nibabel.axcodes2ornt(source), nibabel.axcodes2ornt(target)
    return np.asarray(nibabel.apply_orientation(array, nibabel.ornt_transform(have, want)))


# What a sample's json says -------------------------------------------------------------------------------------------


def geometry(grid: Grid, orientation: str) -> dict[str, Any]:
    """What a sample's json says of its grid.

    `spacing_mm` is in the order of the stored axes (slice, row, column); `axes` are those of the file, which `origin`
    (3) and `direction` (9, by rows) are about: its affine is direction * spacing along x, y, z, with origin as its last
    column. Of a grid without a spacing only the axes are known.
    """
    if not grid.measured:
        return {"axes": grid.axes, "orientation": orientation}
    spacing = grid.spacing
    return {
        "spacing_mm": [spacing[place] for place in _places(grid.axes, axes_of(orientation))],
        "origin": [float(value) for value in grid.affine[:3, 3]],
        "direction": [float(value) for value in (grid.affine[:3, :3] / np.array(spacing)).ravel()],
        "axes": grid.axes,
        "orientation": orientation,
    }


def affine_of(meta: Mapping[str, Any]) -> NDArray[np.float64]:
    """The affine (4, 4) of the file that a sample was made from, from its json."""
    stored = axes_of(meta["orientation"])
    spacing = [meta["spacing_mm"][place] for place in _places(stored, meta["axes"])]
    affine = np.eye(4)
    affine[:3, :3] = np.array(meta["direction"]).reshape(3, 3) * np.array(spacing)
    affine[:3, 3] = meta["origin"]
    return affine


# An image and its mask -----------------------------------------------------------------------------------------------


class Alignment(NamedTuple):
    """How a mask's axes come to lie as its image's: the axes that stand for both, and what is doubtful."""

    image_axes: str
    mask_axes: str
    notes: tuple[str, ...] = ()

    def on_image(self, voxels: NDArray[Any]) -> NDArray[Any]:
        """The mask's voxels [x, y, z] in the order of the image's."""
        return _reordered(voxels, self.mask_axes, self.image_axes)


def aligned(mask_file: Named, mask: Grid, image_file: Named, image: Grid) -> Alignment:
    """How a mask lies on its image's grid; BadFile when it does not.

    The two may be stored along different axes. A file without orientation, or without an origin, is taken to have that
    of the other, which is noted.
    """
    notes: list[str] = []
    if not mask.oriented or not image.oriented:
        if mask.oriented != image.oriented:
            which = "image" if mask.oriented else "mask"
            notes.append(f"the {which} has no orientation; its voxels were taken in the order of the other file")
        mask_axes = image.axes
    else:
        mask_axes = _nearest_axes(mask, image)
    places = _places(mask_axes, image.axes)
    shape, spacing = (tuple(own[place] for place in places) for own in (mask.shape, mask.spacing))
    if shape != image.shape:
        as_stored = f" ({shape} in the image's axes)" if shape != mask.shape else ""
        raise BadFile(
            f"{mask_file}: has shape {mask.shape}{as_stored}, {image_file.name} has {image.shape}; give them one grid"
        )
    if mask.measured != image.measured:
        notes.append(f"the {'image' if mask.measured else 'mask'} has no spacing; it is taken to have the other's")
    elif not np.allclose(spacing, image.spacing, atol=SPACING_TOLERANCE_MM, rtol=1e-4):
        spacings = ", ".join(" x ".join(f"{step:.4g}" for step in own) for own in (spacing, image.spacing))
        raise BadFile(f"{mask_file}: its spacing is not that of {image_file.name} ({spacings} mm); give them one grid")
    if mask.oriented and image.oriented and mask.measured and image.measured:
        notes += _compare_places(mask_file, mask, mask_axes, image_file, image)
        if mask_axes != image.axes:
            notes.append(
                f"the mask is stored along other axes than its image, and was turned ({mask_axes}, {image.axes})"
            )
    return Alignment(image.axes, mask_axes, tuple(notes))


def _nearest_axes(mask: Grid, image: Grid) -> str:
    """The mask's axes in the terms of the image's, so that two oblique grids do not fall on different axes of the
    body by a rounding error."""
    import nibabel.orientations as nibabel

    between = np.linalg.inv(image.affine) @ mask.affine
    names = [(axis, _opposite(axis)) for axis in image.axes]
    return "".join(names[int(place)][0 if flip > 0 else 1] for place, flip in nibabel.io_orientation(between))


def _opposite(axis: str) -> str:
    return dict(zip("RLAPSI", "LRPAIS", strict=True))[axis]


def _compare_places(mask_file: Named, mask: Grid, mask_axes: str, image_file: Named, image: Grid) -> list[str]:
    """BadFile where the mask lies elsewhere than its image, measured in voxels; a note where an origin is absent."""
    import nibabel.orientations as nibabel

    transform = nibabel.ornt_transform(nibabel.axcodes2ornt(mask_axes), nibabel.axcodes2ornt(image.axes))
    affine = mask.affine @ nibabel.inv_ornt_aff(transform, mask.shape)
    between = np.linalg.inv(image.affine) @ affine
    turn = np.abs(between[:3, :3] - np.eye(3)) @ (np.array(image.shape) - 1)
    if turn.max() > PLACE_TOLERANCE_VOXELS:
        raise BadFile(f"{mask_file}: its axes point elsewhere than those of {image_file.name}; give them one grid")
    shift = np.abs(between[:3, 3])
    if shift.max() <= PLACE_TOLERANCE_VOXELS:
        return []
    distance = float(np.linalg.norm(affine[:3, 3] - image.affine[:3, 3]))
    absent = [what for what, own in (("mask", mask), ("image", image)) if not own.affine[:3, 3].any()]
    if absent and mask_axes == image.axes:
        return [f"the {absent[0]} has no origin; its voxels were taken in the order of the other file"]
    raise BadFile(f"{mask_file}: lies {distance:.4g} mm away from {image_file.name}; give them one grid")
