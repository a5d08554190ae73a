"""Scans as NRRD, MHA and DICOM: the mask lies in the body as that of the same scan as NIfTI."""

from __future__ import annotations

import locale
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from rwkvctl.base.errors import UserError
from rwkvctl.data.images import intensity, itk
from rwkvctl.models.ensemble import Member, Segmenter
from rwkvctl.models.predict import plan, predict_files, predict_one

from .test_predict import Bright, info
from .test_predict_scans import Corner, for_scans

SHAPE, SPACING, ORIGIN = (32, 24, 6), (1.5, 2.0, 2.5), (-20.0, -30.0, 40.0)


def scan(direction: tuple[float, ...] = (1, 0, 0, 0, 1, 0, 0, 0, 1)) -> Any:
    """A CT of noise; its grid in ITK's LPS."""
    voxels = np.random.default_rng(1).integers(-200, 300, SHAPE[::-1]).astype(np.int16)
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing(SPACING)
    image.SetOrigin(ORIGIN)
    image.SetDirection(direction)
    return image


def write_series(image: Any, folder: Path, series: str = "1.2.826.0.1.3680043.2.1125.1") -> Path:
    """A series of one slice a file, its pixels stored as HU + 1024 and rescaled."""
    with itk.same_locale():
        return written_series(image, folder, series)


def written_series(image: Any, folder: Path, series: str) -> Path:
    folder.mkdir(exist_ok=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    direction = image.GetDirection()
    for z in range(image.GetDepth()):
        part = sitk.Cast(image[:, :, z], sitk.sitkInt16)  # ITK writes what the rescale tags make of it
        place = image.TransformIndexToPhysicalPoint((0, 0, z))
        for tag, value in {
            "0008|0016": "1.2.840.10008.5.1.4.1.1.2",
            "0008|0018": f"{series}.{z + 1}",
            "0008|0060": "CT",
            "0020|000d": "1.2.826.0.1.3680043.2.1125.9",
            "0020|000e": series,
            "0020|0013": str(z + 1),
            "0020|0032": "\\".join(map(str, place)),
            "0020|0037": "\\".join(str(direction[i]) for i in (0, 3, 6, 1, 4, 7)),
            "0018|0050": str(image.GetSpacing()[2]),
            "0028|1052": "-1024",
            "0028|1053": "1",
        }.items():
            part.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{series[-1]}-{image.GetDepth() - z:03d}.dcm"))  # names against the order
        writer.Execute(part)
    return folder


def in_body(mask: Path) -> dict[tuple[float, ...], int]:
    """The class at every place of the body (RAS, mm), by a program that is not ours."""
    image = sitk.ReadImage(str(mask))
    voxels = sitk.GetArrayFromImage(image)
    return {
        tuple(np.round(image.TransformIndexToPhysicalPoint((x, y, z)), 2)): int(voxels[z, y, x])
        for z, y, x in np.ndindex(*voxels.shape)
        if voxels[z, y, x]
    }


OBLIQUE = (0.8, 0.6, 0, -0.6, 0.8, 0, 0, 0, 1)
AXES = {"LPS": (1, 0, 0, 0, 1, 0, 0, 0, 1), "RAS": (-1, 0, 0, 0, -1, 0, 0, 0, 1), "oblique": OBLIQUE}


@pytest.mark.parametrize("axes", AXES)
def test_a_mask_lies_in_the_body_as_that_of_the_same_nifti_scan(tmp_path: Path, axes: str):
    image = scan(AXES[axes])
    for name in ("ct.nii.gz", "ct.nrrd", "ct.mha"):
        sitk.WriteImage(image, str(tmp_path / name))
    series = write_series(image, tmp_path / "series")
    paths = [tmp_path / "ct.nrrd", tmp_path / "ct.mha", series]
    before = locale.setlocale(locale.LC_ALL)
    masks = predict_files(Corner().eval(), for_scans(), paths, tmp_path / "masks")
    assert locale.setlocale(locale.LC_ALL) == before, "text is read as before"
    [of_nifti] = predict_files(Corner().eval(), for_scans(), [tmp_path / "ct.nii.gz"], tmp_path / "nifti")
    assert [mask.name for mask in masks] == ["ct.nrrd", "ct.mha", "series.nii.gz"]
    expected = in_body(of_nifti)
    assert set(expected.values()) == {1, 2}
    for mask in masks:
        assert in_body(mask) == expected, mask.name
    assert sitk.ReadImage(str(masks[0])).GetDirection() == pytest.approx(image.GetDirection())
    assert nibabel.load(masks[2]).get_data_dtype() == np.uint8


def test_a_dicom_series_is_read_in_hounsfield_units_and_its_volumes_are_told(tmp_path: Path):
    """The model's class is where HU / window is above one half: stored numbers, 1024 higher, would all be."""
    image = scan()
    window = for_scans().model_copy(update={"intensity": intensity.rule(-200, 300)})
    series = write_series(image, tmp_path / "series")
    planned = plan([series], window, tmp_path / "masks")
    written = predict_one(Segmenter([Member(Bright().eval(), window)]), planned.inputs[0], planned.targets[0])
    stored = np.frombuffer(next(series.iterdir()).read_bytes()[-2 * SHAPE[0] * SHAPE[1] :], "<i2")
    assert stored.min() >= 1024 - 200, "not HU"
    above = (sitk.GetArrayFromImage(image) > 50).mean()
    assert (written.ids == 1).mean() == pytest.approx(above, abs=0.15)
    assert written.voxel_ml == pytest.approx(1.5 * 2 * 2.5 / 1000)


def mixed(folder: Path) -> None:
    write_series(scan(), folder)
    write_series(scan(), folder, "1.2.826.0.1.3680043.2.1125.2")


def hole(folder: Path) -> None:
    next(iter(sorted(write_series(scan(), folder).iterdir())[2:3])).unlink()


def text(content: bytes) -> Any:
    return lambda path: path.write_bytes(content)


NRRD = b"NRRD0004\ntype: short\ndimension: 3\nsizes: 2 2 2\nencoding: raw\n"
MISTAKES = {
    "two series": ("x", mixed, "has 2 DICOM series, where one was expected; put each into a folder"),
    "a hole": ("x", hole, "slices are missing or uneven: 5 mm apart where others are 2.5 mm; give a whole scan"),
    "text": ("x.nrrd", text(b"hello"), "cannot be read ("),
    "another file": ("x.nrrd", text(NRRD + b"data file: /etc/passwd\n\n"), "keeps its voxels in another file"),
    "another file, mha": ("x.mha", text(b"ObjectType = Image\nElementDataFile = /etc/passwd\n"), "in another file"),
    "cut off": ("x.nrrd", text(NRRD + b"\n1234"), "cannot be read ("),
    "colours": ("x.mha", lambda path: sitk.WriteImage(sitk.Image([4, 4, 2], sitk.sitkVectorUInt8, 3), str(path)),
                "is 4 x 4 x 2 with 3 channels, where a scan has three axes and one channel"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_what_is_no_scan_is_one_line_and_leaves_nothing(tmp_path: Path, name: str):
    place, make, said = MISTAKES[name]
    make(tmp_path / place)
    with pytest.raises(UserError) as caught:
        predict_files(Bright().eval(), for_scans(), [tmp_path / place], tmp_path / "masks")
    assert said in str(caught.value)
    assert str(caught.value).startswith(f"input {tmp_path / place}: ")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "masks").exists()
    with pytest.raises(UserError, match="this model takes colour images"):
        predict_files(Bright().eval(), info("rgb8"), [tmp_path / place], tmp_path / "masks")
