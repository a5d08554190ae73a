"""Volumes and their labels, saved as scanners and programs do: NIfTI by nibabel, NRRD and MetaImage by SimpleITK, along
any axes."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from rwkvctl.data.convert.synth import phantom
from rwkvctl.data.convert.synth.output import Array

DEPTH = 5
AXES = ("LPS", "RAS", "LAS", "PSR", "SAL")
"""Along which files are stored, one after the other."""
CLASSES = ("background", "right ventricle", "myocardium", "left ventricle")


class Scan(NamedTuple):
    """image int16 and label uint8 (D, H, W): from the feet up, front at the top, the patient's right at the left;
    spacing and origin of the first voxel in mm along (z, y, x) of LPS."""

    image: Array
    label: Array
    spacing: tuple[float, float, float]
    origin: tuple[float, float, float]


def scan(seed: int, number: int, size: int) -> Scan:
    """Of patient `number`."""
    rng = np.random.default_rng([seed, 20, number])
    image, label = phantom.heart_volume(phantom.heart_anatomy(rng), size, DEPTH, 1.0, rng)
    origin = tuple(float(own) for own in rng.uniform(-90, 90, 3).round(1))
    values = np.round(image[:, : size - 4] * 1500 - 200).astype(np.int16)
    return Scan(values, label[:, : size - 4], (4.0, 1.25, 1.5), origin)  # type: ignore[arg-type]


def axes_of(number: int) -> str:
    """Along which patient `number` is stored."""
    return AXES[number % len(AXES)]


def save(path: Path, array: Array, of: Scan, axes: str = "LPS") -> None:
    """Write `array` (D, H, W) on the grid of a scan, stored along `axes`, in the kind of the path's ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.name.endswith((".nii", ".nii.gz")):
        _save_nifti(path, array, of, axes)
        return
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(array)
    image.SetSpacing(of.spacing[::-1])
    image.SetOrigin(of.origin[::-1])
    sitk.WriteImage(sitk.DICOMOrient(image, axes), str(path), useCompression=path.suffix != ".mhd")


def _save_nifti(path: Path, array: Array, of: Scan, axes: str) -> None:
    import nibabel
    from nibabel import orientations

    affine = np.diag([*of.spacing[::-1], 1.0])
    affine[:3, 3] = of.origin[::-1]
    image = nibabel.Nifti1Image(array.transpose(2, 1, 0), np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine)
    turn = orientations.ornt_transform(orientations.axcodes2ornt("LPS"), orientations.axcodes2ornt(axes))
    turned = image.as_reoriented(turn)
    turned.header.set_xyzt_units("mm")
    turned.set_sform(turned.affine, 1)
    turned.set_qform(turned.affine, 1)
    nibabel.save(turned, path)
