"""TIFF files of many pages as volumes, with the spacing that ImageJ keeps in them. They lie as their pages are looked
at, which nothing in such a file says."""

from __future__ import annotations

from collections import Counter

import numpy as np

from rwkvctl.base.errors import BadFile
from rwkvctl.data.convert.raw_files import RawFile
from rwkvctl.data.images import tiff_stack
from rwkvctl.data.images.grid import Grid
from rwkvctl.data.images.nifti import Stored

ENDINGS = (".tif", ".tiff")
_MOST_SINGLE = 3
_SINGLE = Counter[tuple[str, str]]()
"""By folder of a source, how many TIFFs of one page were seen before any of many. After a few of them the others of the
folder are not opened: sets of pictures have thousands."""


def is_stack(file: RawFile) -> bool:
    """Whether a TIFF has many pages."""
    folder = (file.home, file.parent)
    if _SINGLE[folder] >= _MOST_SINGLE:
        return False
    with file.open() as stream:
        found = tiff_stack.pages_in(stream) > 1
    _SINGLE[folder] += -1000 if found else 1
    return found


def read_grid(file: RawFile) -> Grid:
    """From the headers of its pages."""
    try:
        with file.open() as stream:
            shape, calibration = tiff_stack.shape_in(stream)
    except (OSError, ValueError) as error:
        raise BadFile(f"{file}: {error}; replace it") from error
    spacing = tiff_stack.spacing_mm(calibration)
    steps = spacing or (1.0, 1.0, 1.0)
    affine = np.diag([-steps[2], -steps[1], steps[0], 1.0])
    notes = () if spacing else ("the TIFF has no spacing",)
    return Grid(affine, shape[::-1], oriented=False, notes=notes, measured=spacing is not None)


def read(file: RawFile) -> Stored:
    """The voxels [x, y, z]; BadFile for pages in colour, or of several kinds."""
    try:
        stack = tiff_stack.read(file.read())
    except ValueError as error:
        raise BadFile(f"{file}: {error}; replace it") from error
    if stack.pages.ndim != 3:
        raise BadFile(f"{file}: its pages are in colour; a volume has one channel, save it in grey")
    return Stored(stack.pages.transpose(2, 1, 0), read_grid(file), None, None, None)
