"""The mask of a scan, on the scan's own grid."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import nn

from rwkvctl.base.errors import UserError
from rwkvctl.base.files import atomic_path
from rwkvctl.data.images import intensity
from rwkvctl.models.bundle import BundleInfo
from rwkvctl.models.inference import segment

SCANS = (".nii.gz", ".nii")


def is_scan(path: Path) -> bool:
    return path.name.endswith(SCANS)


def segment_scan(model: nn.Module, info: BundleInfo, path: Path, out: Path) -> Path:
    """Bring a scan to what the model was trained on, and its mask back to the scan's grid."""
    import nibabel

    from rwkvctl.data.convert.sources import on_disk
    from rwkvctl.data.images import nifti

    if info.image_kind != "float":
        raise UserError(f"input {path}: this model takes colour images (JPEG, PNG, TIFF, BMP), not scans")
    if info.intensity is None or info.orientation is None:
        raise UserError(f"input {path}: the model does not say how scans were prepared for it; give .npy in [0, 1]")
    try:
        scan = nifti.read(on_disk(path))
        low, high = intensity.window(scan.voxels, *info.intensity["clip"])
        volume = intensity.scaled(nifti.turned(scan.voxels, info.orientation), low, high)
    except ValueError as error:
        line = str(error).removeprefix(f"{path}: ").removesuffix("; replace it")
        raise UserError(f"input {path}: {line}; give a whole NIfTI scan") from None
    mask = nifti.turned_back(segment(model, info, volume), info.orientation)
    target = out / path.name
    with atomic_path(target) as temporary:
        nibabel.save(nibabel.Nifti1Image(np.ascontiguousarray(mask), scan.grid.affine), temporary)
    return target
