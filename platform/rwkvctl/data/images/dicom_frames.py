"""Enhanced DICOM: a volume in one file, whose frames say one by one where they lie. ITK takes them in the file's order
and without their distance; highdicom sorts them by their places."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ENHANCED = frozenset(
    {
        "1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2",  # CT, and converted to it
        "1.2.840.10008.5.1.4.1.1.4.1", "1.2.840.10008.5.1.4.1.1.4.4",  # MR
        "1.2.840.10008.5.1.4.1.1.130", "1.2.840.10008.5.1.4.1.1.128.1",  # PET
    }
)  # fmt: skip
"""The classes of volumes."""


def is_enhanced(path: Path) -> bool:
    """Whether a DICOM file is a volume."""
    import pydicom

    try:
        return pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["SOPClassUID"]).SOPClassUID in ENHANCED
    except Exception:  # pydicom raises nearly anything on a broken file
        return False


def read(path: Path) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """float32 voxels [x, y, z], rescaled, and their affine (4, 4) in LPS; ValueError, in one line, where frames are no
    volume."""
    volume = _volume(path, pixels=True)
    return volume.array.transpose(2, 1, 0), _affine(volume)


def ids_on(path: Path, mask: NDArray[np.uint8]) -> Any:
    """Class ids [x, y, z] on the grid that `read` gives, as highdicom's volume, which it lays on the frames."""
    import highdicom as hd

    geometry = _volume(path, pixels=False)
    return hd.Volume.from_components(
        array=np.ascontiguousarray(mask.transpose(2, 1, 0)),
        direction=geometry.direction,
        position=geometry.position,
        spacing=geometry.spacing,
        coordinate_system=geometry.coordinate_system,
        frame_of_reference_uid=geometry.frame_of_reference_uid,
    )


def _volume(path: Path, *, pixels: bool) -> Any:
    import highdicom as hd

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of values against the standard
            image = hd.imread(path)
            found = image.get_volume(dtype=np.float32) if pixels else image.get_volume_geometry()
    except Exception as error:  # pydicom raises nearly anything on a broken file
        raise ValueError(f"{path}: its frames are no volume ({' '.join(str(error).split())[:120]})") from None
    if found is None:
        raise ValueError(f"{path}: its frames are no volume (they are not at one distance from one another)")
    return found


def _affine(volume: Any) -> NDArray[np.float64]:
    """Of [x, y, z], where highdicom has [z, y, x]."""
    return np.asarray(volume.affine)[:, [2, 1, 0, 3]]
