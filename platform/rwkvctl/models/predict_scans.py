"""The mask of a scan, on the scan's own grid."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rwkvctl.base.errors import UserError
from rwkvctl.base.files import write_bytes
from rwkvctl.data.images import grid, intensity, itk
from rwkvctl.models.ensemble import Segmenter
from rwkvctl.models.predict_form import Form

NIFTI = (".nii.gz", ".nii")


class SegmentedScan(NamedTuple):
    """The mask of a scan."""

    mask: Path
    ids: NDArray[np.uint8]
    """[x, y, z], as in the mask's file."""
    voxel_ml: float
    note: str
    """What was doubtful in the scan's header and how it was read; "" where nothing was."""
    probabilities: NDArray[np.float16] | None
    """[class, x, y, z]"""
    shown: tuple[NDArray[np.float32], NDArray[np.uint8]]
    """The slices (D, H, W) that the model saw, at their own size, and the mask in their axes."""


def is_scan(path: Path) -> bool:
    """Whether a path is a scan by its ending, or a folder with DICOM slices."""
    return path.name.lower().endswith((*NIFTI, *itk.FILES)) or itk.is_series(path)


def mask_name(path: Path, form: Form = Form()) -> str:
    """The name of a scan's mask: its own; of a DICOM series, that of its folder with the form's ending."""
    if not path.is_dir():
        return path.name
    return f"{path.name}.dcm" if form.is_dicom else f"{path.name}.nii.gz"


def segment_scan(segmenter: Segmenter, path: Path, target: Path, form: Form = Form()) -> SegmentedScan:
    """Bring a scan to what the model was trained on, and its mask back to the scan's grid, into the file `target`.

    The scan's axes are turned to the model's (`info.orientation`), as its training data were, whatever way the file is
    stored. The mask's file has the scan's header but for the type of its voxels; that of a DICOM series is a
    NIfTI file on the series' grid, or a DICOM segmentation.
    """
    from rwkvctl.data.convert.sources import on_disk
    from rwkvctl.data.images import nifti

    info = segmenter.info
    if info.image_kind != "float":
        raise UserError(f"input {path}: this model takes colour images (JPEG, PNG, TIFF, BMP), not scans")
    if info.intensity is None or info.orientation is None:
        raise UserError(f"input {path}: the model does not say how scans were prepared for it; give .npy in [0, 1]")
    if not grid.is_orientation(info.orientation):
        raise UserError(
            f"input {path}: the model's orientation {info.orientation!r} is unknown; export the model again"
        )
    try:
        scan = nifti.read(on_disk(path)) if path.name.lower().endswith(NIFTI) else itk.read(path)
        layout = grid.layout(scan.grid, info.orientation)
        low, high = intensity.window(scan.voxels, *info.intensity["clip"])
        volume = intensity.scaled(grid.turned(scan.voxels, scan.grid, layout), low, high)
    except ValueError as error:
        line = str(error).removeprefix(f"{path}: ")
        line = line.removesuffix("; replace it").removesuffix("; download it again")
        remedy = "" if "; " in line or "pip install" in line else "; give a whole scan"
        raise UserError(f"input {path}: {line}{remedy}") from None
    found, meta = segmenter.segment(volume), grid.geometry(scan.grid, layout)
    mask = np.asarray(grid.turned_back(found.mask, meta))
    if isinstance(scan, itk.ItkScan) and form.is_dicom:
        form.write(scan, mask, info.classes, target)
    elif isinstance(scan, itk.ItkScan):
        itk.write(scan, mask, target)
    else:
        write_bytes(target, nifti.like(scan, mask, gzipped=path.name.lower().endswith(".gz")))
    likely = found.probabilities
    return SegmentedScan(
        target,
        mask,
        float(np.prod(scan.grid.spacing)) / 1000,
        "; ".join(scan.grid.notes),
        None if likely is None else np.stack([grid.turned_back(each, meta) for each in likely]),
        (volume, found.mask),
    )
