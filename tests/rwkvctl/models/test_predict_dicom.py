"""DICOM segmentations of predictions lie in the body as the NIfTI masks of the same predictions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk

from rwkvctl.base.errors import UserError
from rwkvctl.config.specs.segments import SegmentCode
from rwkvctl.models.ensemble import Member, Segmenter
from rwkvctl.models.predict import Written, plan, predict_files, predict_one
from rwkvctl.models.predict_form import Form, Name, maker
from rwkvctl.models.predict_sources import found

from ..data.images.dicom_series import OBLIQUE, STRAIGHT, enhanced, write_ct
from .test_predict_itk import AXES, in_body, scan
from .test_predict_scans import Corner, for_scans

SAGITTAL = ((0.0, 1.0, 0.0), (0.0, 0.0, -1.0))
INFO = for_scans().model_copy(update={"classes": ["background", "liver", "spleen"], "weights_sha256": "ab" * 32})


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(2).integers(-200, 300, shape)


def predicted(series: Path, out: Path, name: Name, **options: Any) -> Written:
    form = Form(name, maker=maker([INFO], ["/home/me/runs/first"]), **options)
    inputs, [target] = plan([series], INFO, out, form=form)
    return predict_one(Segmenter([Member(Corner().eval(), INFO)]), inputs[0], target, form=form)


def in_body_of_dicom(mask: Path) -> dict[tuple[float, ...], int]:
    """The class at every place of the body (LPS, mm)."""
    volume = hd.seg.segread(mask).get_volume(combine_segments=True)
    return {
        tuple(np.round((volume.affine @ [*voxel, 1])[:3], 2) + 0.0): int(volume.array[tuple(voxel)])
        for voxel in np.argwhere(volume.array)
    }


@pytest.mark.parametrize("axes", [STRAIGHT, OBLIQUE, SAGITTAL], ids=["straight", "oblique", "sagittal"])
@pytest.mark.parametrize("name", ["dicom-seg", "dicom-labelmap"])
def test_a_dicom_segmentation_lies_where_the_nifti_mask_lies(tmp_path: Path, axes: Any, name: Name):
    series = write_ct(tmp_path / "ct", noise(12, 16, 5), axes=axes)
    made, nifti = predicted(series, tmp_path / "dicom", name), predicted(series, tmp_path / "nifti", "auto")
    assert (made.mask.name, nifti.mask.name) == ("ct.dcm", "ct.nii.gz")
    np.testing.assert_array_equal(made.ids, nifti.ids)
    expected = {tuple(np.array(place) + 0.0): number for place, number in in_body(nifti.mask).items()}
    assert set(expected.values()) == {1, 2}
    assert in_body_of_dicom(made.mask) == expected


def test_it_says_which_model_made_it_and_not_where_that_lies(tmp_path: Path):
    codes = {"spleen": SegmentCode(type=("99LOCAL", "S", "Milz"), color="#0000ff")}
    series = write_ct(tmp_path / "ct", noise(12, 16, 5))
    written = predicted(series, tmp_path / "masks", "dicom-seg", codes=codes, keep_empty_frames=True)
    found = pydicom.dcmread(written.mask)
    assert found.NumberOfFrames == 10
    assert [each.SegmentLabel for each in found.SegmentSequence] == ["liver", "spleen"]
    assert found.SegmentSequence[1].SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Milz"
    [algorithm] = found.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence
    assert "first" in algorithm.AlgorithmParameters
    assert "ab" * 32 in algorithm.AlgorithmParameters
    assert b"/home/me" not in written.mask.read_bytes()


def test_models_of_an_ensemble_are_all_named():
    named = maker([INFO, INFO], ["models:/x@champion", "runs/second"])
    assert named.version == "abababababab+abababababab"
    assert named.parameters["model_1"] == "models:/x@champion"
    assert named.parameters["model_2"] == "second"


def test_what_has_no_dicom_segmentation_is_told_before_anything_is_made(tmp_path: Path):
    series = write_ct(tmp_path / "ct", noise(12, 16, 5))
    np.save(tmp_path / "x.npy", np.zeros((8, 8), np.float32))
    with pytest.raises(UserError, match=r"x.npy: is no DICOM series, as --format dicom-seg needs; leave --format out"):
        plan([series, tmp_path / "x.npy"], INFO, tmp_path / "masks", form=Form("dicom-seg"))
    wrong = Form("dicom-seg", codes={"livr": SegmentCode(type=("SCT", "1", "x"))})
    with pytest.raises(UserError, match=r"--segment-codes: livr: no such class; did you mean liver\?"):
        plan([series], INFO, tmp_path / "masks", form=wrong)
    bare = write_ct(tmp_path / "bare", noise(12, 16, 5), StudyInstanceUID=None)
    with pytest.raises(UserError, match=r"^input .*IM000.: its DICOM header lacks StudyInstanceUID"):
        predicted(bare, tmp_path / "masks", "dicom-seg")
    assert not (tmp_path / "masks").exists()


@pytest.mark.parametrize("stored", ["LAS", "RAS", "PSR", "oblique"])
def test_the_same_scan_stored_otherwise_gives_the_same_mask_in_the_body_in_every_format(tmp_path: Path, stored: str):
    """As NIfTI, NRRD, MHA, DICOM and DICOM-SEG; what is expected is the mask of the scan as it lay before."""
    image = scan(AXES["oblique"] if stored == "oblique" else AXES["LPS"])
    sitk.WriteImage(image, str(tmp_path / "before.nii.gz"))
    [before] = predict_files(Corner().eval(), INFO, [tmp_path / "before.nii.gz"], tmp_path / "before")
    expected = rounded(in_body(before))
    turned = sitk.DICOMOrient(image, "ASL" if stored == "oblique" else stored)
    paths = [tmp_path / f"ct{ending}" for ending in (".nii", ".nrrd", ".mha")]
    for path in paths:
        sitk.WriteImage(turned, str(path))
    paths.append(as_series(turned, tmp_path / "series"))
    masks = predict_files(Corner().eval(), INFO, paths, tmp_path / "masks")
    for path, mask in zip(paths, masks, strict=True):
        assert rounded(in_body(mask)) == expected, path.name
    assert rounded(in_body_of_dicom(predicted(paths[-1], tmp_path / "dicom", "dicom-seg").mask)) == expected


def rounded(places: dict[tuple[float, ...], int]) -> dict[tuple[float, ...], int]:
    """To a tenth of a mm: formats keep places with few digits."""
    return {tuple(np.round(place, 1) + 0.0): number for place, number in places.items()}


def as_series(image: Any, folder: Path) -> Path:
    """A DICOM series of the same voxels at the same places. Its slices follow their normal, so that those of a grid
    that is a mirror image come in the opposite order."""
    direction = np.array(image.GetDirection()).reshape(3, 3)
    voxels = sitk.GetArrayFromImage(image).transpose(1, 2, 0)  # [y, x, z]
    origin = image.GetOrigin()
    if np.linalg.det(direction) < 0:
        voxels, origin = voxels[..., ::-1], image.TransformIndexToPhysicalPoint((0, 0, image.GetDepth() - 1))
    axes = tuple(direction[:, 0]), tuple(direction[:, 1])
    return write_ct(folder, voxels, axes=axes, spacing=image.GetSpacing(), origin=origin)


@pytest.mark.parametrize("axes", [STRAIGHT, OBLIQUE], ids=["straight", "oblique"])
def test_an_enhanced_file_has_the_mask_of_its_series(tmp_path: Path, axes: Any):
    series = write_ct(tmp_path / "ct", noise(12, 16, 5), axes=axes)
    file = enhanced(series, tmp_path / "enhanced" / "volume.dcm")
    [nifti] = predict_files(Corner().eval(), INFO, [series], tmp_path / "nifti")
    expected = rounded(in_body(nifti))
    sources = found([str(file)], tmp_path / "scratch")
    assert [path.name for path in sources.paths] == ["volume"]
    [of_frames] = predict_files(Corner().eval(), INFO, sources.paths, tmp_path / "frames")
    assert of_frames.name == "volume.nii.gz"
    assert rounded(in_body(of_frames)) == expected
    made = predicted(sources.paths[0], tmp_path / "dicom", "dicom-seg").mask
    assert rounded(in_body_of_dicom(made)) == expected
    [frame, *_] = pydicom.dcmread(made).PerFrameFunctionalGroupsSequence
    [referenced] = frame.DerivationImageSequence[0].SourceImageSequence
    assert referenced.ReferencedSOPInstanceUID == pydicom.dcmread(file).SOPInstanceUID
    place = pydicom.dcmread(file).PerFrameFunctionalGroupsSequence[referenced.ReferencedFrameNumber - 1]
    assert frame.PlanePositionSequence == place.PlanePositionSequence


def test_a_tilted_gantry_is_told_and_dicom_keeps_the_place_of_each_slice(tmp_path: Path):
    series = write_ct(tmp_path / "ct", noise(12, 16, 5), shift=(0, 0.6, 0))
    written = predicted(series, tmp_path / "masks", "dicom-seg")
    assert written.note.startswith("the gantry was tilted: the last slice lies 2.4 mm aside of the first")
    places = {tuple(pydicom.dcmread(file).ImagePositionPatient) for file in series.iterdir()}
    frames = pydicom.dcmread(written.mask).PerFrameFunctionalGroupsSequence
    assert {tuple(frame.PlanePositionSequence[0].ImagePositionPatient) for frame in frames} == places
    assert predicted(write_ct(tmp_path / "straight", noise(12, 16, 5)), tmp_path / "masks", "auto").note == ""
