"""The mask of a scan, on the scan's own grid."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from torch import nn

from rwkvctl.base.errors import UserError
from rwkvctl.base.files import write_bytes
from rwkvctl.data.images import grid, intensity
from rwkvctl.models.bundle import BundleInfo
from rwkvctl.models.inference import segment

SCANS = (".nii.gz", ".nii")


class SegmentedScan(NamedTuple):
    """The mask's file, and what was doubtful in the scan's header and how it was read; "" where nothing was."""

    mask: Path
    note: str


def is_scan(path: Path) -> bool:
    return path.name.lower().endswith(SCANS)


def segment_scan(model: nn.Module, info: BundleInfo, path: Path, out: Path) -> SegmentedScan:
    """Bring a scan to what the model was trained on, and its mask back to the scan's grid.

    The scan's axes are turned to the model's (`info.orientation`), as its training data were, whatever way the file is
    stored. The mask's file has the scan's header but for the type of its voxels.
    """
    from rwkvctl.data.convert.sources import on_disk
    from rwkvctl.data.images import nifti

    if info.image_kind != "float":
        raise UserError(f"input {path}: this model takes colour images (JPEG, PNG, TIFF, BMP), not scans")
    if info.intensity is None or info.orientation is None:
        raise UserError(f"input {path}: the model does not say how scans were prepared for it; give .npy in [0, 1]")
    if not grid.is_orientation(info.orientation):
        raise UserError(
            f"input {path}: the model's orientation {info.orientation!r} is unknown; export the model again"
        )
    try:
        scan = nifti.read(on_disk(path))
        layout = grid.layout(scan.grid, info.orientation)
        low, high = intensity.window(scan.voxels, *info.intensity["clip"])
        volume = intensity.scaled(grid.turned(scan.voxels, scan.grid, layout), low, high)
    except ValueError as error:
        line = str(error).removeprefix(f"{path}: ")
        line = line.removesuffix("; replace it").removesuffix("; download it again")
        remedy = "" if "; " in line else "; give a whole NIfTI scan"
        raise UserError(f"input {path}: {line}{remedy}") from None
    mask = grid.turned_back(segment(model, info, volume), grid.geometry(scan.grid, layout))
    target = out / path.name
    write_bytes(target, nifti.like(scan, mask, gzipped=path.name.lower().endswith(".gz")))
    return SegmentedScan(target, "; ".join(scan.grid.notes))
