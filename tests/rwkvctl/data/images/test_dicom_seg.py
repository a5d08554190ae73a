"""DICOM-SEG: a validator's words, and what other programs read from it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import pytest

from rwkvctl.base.errors import BadFile, UserError
from rwkvctl.config.specs.segments import SegmentCode, code_of, read_codes, shipped
from rwkvctl.data.images import dicom_seg, itk

from .dicom_series import GERMAN, JAPANESE, OBLIQUE, STRAIGHT, write_ct

CLASSES = ["background", "left kidney", "Leber (röntgen)", "not there"]
MAKER = dicom_seg.Maker("rwkv_unet_b on synapse", "0123456789abcdef", {"model": "models:/synapse@champion"})
SHAPE = (20, 24, 5)


def noise() -> np.ndarray:
    return np.random.default_rng(0).integers(-300, 300, SHAPE)


def ids() -> np.ndarray:
    """[x, y, z], with the third class in no voxel and the last slice empty."""
    mask = np.random.default_rng(1).integers(0, 3, (SHAPE[1], SHAPE[0], SHAPE[2])).astype(np.uint8)
    mask[..., -1] = 0
    return mask


def made(folder: Path, series: Path, **options: Any) -> tuple[Path, itk.ItkScan]:
    scan = itk.read(series)
    path = folder / "mask.dcm"
    path.write_bytes(dicom_seg.encoded(scan.files, ids(), CLASSES, MAKER, **options))
    return path, scan


def complaints(path: Path) -> list[str]:
    """What dciodvfy has to say against a file."""
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy (dicom3tools) is not installed")
    said = subprocess.run(["dciodvfy", "-new", str(path)], capture_output=True, text=True, errors="replace").stderr
    return [line for line in said.splitlines() if line.startswith("Error")]


@pytest.mark.parametrize("patient", [GERMAN, JAPANESE, ("ISO_IR 192", "Łukasz^Ж")], ids=["latin", "kanji", "utf"])
@pytest.mark.parametrize("keep", [False, True])
def test_the_validator_has_no_complaint_and_the_patient_is_the_series_own(tmp_path: Path, patient: Any, keep: bool):
    series = write_ct(tmp_path / "ct", noise(), axes=OBLIQUE, patient=patient)
    path, _ = made(tmp_path, series, keep_empty_frames=keep)
    source = pydicom.dcmread(next(series.iterdir()))
    found = pydicom.dcmread(path)
    assert str(found.PatientName) == patient[1] == str(source.PatientName)
    assert (found.StudyInstanceUID, found.PatientID) == (source.StudyInstanceUID, "4711")
    assert found.SeriesInstanceUID != source.SeriesInstanceUID
    assert found.NumberOfFrames == (15 if keep else 8)
    assert complaints(path) == []


def test_a_mask_without_foreground_is_a_valid_file_too(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    scan = itk.read(write_ct(tmp_path / "ct", noise()))
    path = tmp_path / "mask.dcm"
    path.write_bytes(dicom_seg.encoded(scan.files, np.zeros_like(ids()), CLASSES, MAKER))
    assert not pydicom.dcmread(path).pixel_array.any()
    assert caplog.messages == [], "nothing of the library's for a person to read"
    assert complaints(path) == []


@pytest.mark.parametrize("axes", [STRAIGHT, OBLIQUE], ids=["straight", "oblique"])
@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
def test_each_frame_lies_on_its_image_and_each_voxel_where_it_was(tmp_path: Path, axes: Any, kind: dicom_seg.Kind):
    series = write_ct(tmp_path / "ct", noise(), axes=axes)
    path, scan = made(tmp_path, series, kind=kind)
    read = hd.seg.segread(path)
    volume = read.get_volume(combine_segments=True)
    lps = np.diag([-1.0, -1.0, 1.0, 1.0])
    expected = {}
    for voxel in np.argwhere(ids()):
        expected[tuple(np.round((scan.grid.affine @ [*voxel, 1])[:3], 2))] = ids()[tuple(voxel)]
    found = {}
    for voxel in np.argwhere(volume.array):
        found[tuple(np.round((lps @ volume.affine @ [*voxel, 1])[:3], 2))] = volume.array[tuple(voxel)]
    assert found == expected
    images = {image.SOPInstanceUID: image for image in map(pydicom.dcmread, series.iterdir())}
    [referenced] = read.ReferencedSeriesSequence
    used = {each.ReferencedSOPInstanceUID for each in referenced.ReferencedInstanceSequence}
    assert used <= images.keys()
    for frame in read.PerFrameFunctionalGroupsSequence:
        [derived] = frame.DerivationImageSequence
        [source] = derived.SourceImageSequence
        place = images[source.ReferencedSOPInstanceUID].ImagePositionPatient
        assert frame.PlanePositionSequence[0].ImagePositionPatient == place


def test_simpleitk_reads_the_bits_of_every_segment(tmp_path: Path):
    import SimpleITK as sitk

    path, scan = made(tmp_path, write_ct(tmp_path / "ct", noise()))
    grid = sitk.Image(*scan.voxels.shape, sitk.sitkUInt8)
    for one, value in zip((grid.SetOrigin, grid.SetSpacing, grid.SetDirection), scan.place, strict=True):
        one(value)
    with itk.same_locale():
        frames = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    described = pydicom.dcmread(path).PerFrameFunctionalGroupsSequence
    assert len(frames) == len(described) == 8
    for bits, frame in zip(frames, described, strict=True):
        number = frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        place = grid.TransformPhysicalPointToIndex(frame.PlanePositionSequence[0].ImagePositionPatient)
        np.testing.assert_array_equal(bits != 0, number == ids()[..., place[2]].T)


def test_segments_say_what_they_are(tmp_path: Path):
    own = {"Leber (röntgen)": SegmentCode(type=("SCT", "10200004", "Liver"), color="#102030")}
    path, _ = made(tmp_path, write_ct(tmp_path / "ct", noise()), codes=own)
    kidney, liver, other = pydicom.dcmread(path).SegmentSequence
    assert [each.SegmentNumber for each in (kidney, liver, other)] == [1, 2, 3]
    assert [each.SegmentLabel for each in (kidney, liver, other)] == CLASSES[1:]
    assert kidney.SegmentedPropertyTypeCodeSequence[0].CodeValue == "64033007"
    [left] = kidney.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence
    assert (left.CodeValue, left.CodeMeaning) == ("7771000", "Left")
    assert liver.SegmentedPropertyTypeCodeSequence[0].CodeValue == "10200004"
    assert other.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Tissue"
    colours = [hd.color.CIELabColor.from_dicom_value(each.RecommendedDisplayCIELabValue) for each in (kidney, liver)]
    assert [tuple(colour.to_rgb()) for colour in colours] == [(230, 159, 0), (16, 32, 48)], "the palette's, and its own"
    [algorithm] = kidney.SegmentationAlgorithmIdentificationSequence
    assert algorithm.AlgorithmName == "rwkv_unet_b on synapse"
    assert algorithm.AlgorithmVersion == "0123456789abcdef"
    assert "models:/synapse@champion" in algorithm.AlgorithmParameters


def test_a_mask_without_a_voxel_is_a_segmentation_too(tmp_path: Path):
    scan = itk.read(write_ct(tmp_path / "ct", noise()))
    path = tmp_path / "mask.dcm"
    path.write_bytes(dicom_seg.encoded(scan.files, np.zeros_like(ids()), CLASSES, MAKER))
    assert not hd.seg.segread(path).pixel_array.any()
    assert complaints(path) == []


def test_an_anonymous_series_of_few_attributes(tmp_path: Path):
    absent = dict.fromkeys(
        ["PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate", "StudyTime",
         "AccessionNumber", "ReferringPhysicianName", "SeriesNumber", "SpecificCharacterSet", "Manufacturer"]
    )  # fmt: skip
    path, _ = made(tmp_path, write_ct(tmp_path / "ct", noise(), **absent))
    assert pydicom.dcmread(path).SeriesNumber == dicom_seg.NUMBER_ABOVE
    assert complaints(path) == []


def test_what_cannot_be_referred_to_is_one_line(tmp_path: Path):
    scan = itk.read(write_ct(tmp_path / "ct", noise(), StudyInstanceUID=None))
    with pytest.raises(BadFile, match=r"IM000.: its DICOM header lacks StudyInstanceUID, so that no DICOM-SEG"):
        dicom_seg.encoded(scan.files, ids(), CLASSES, MAKER)
    (tmp_path / "x.dcm").write_bytes(b"hello")
    with pytest.raises(BadFile, match=r"x.dcm: its DICOM header cannot be read \("):
        dicom_seg.encoded([tmp_path / "x.dcm"], ids(), CLASSES, MAKER)


# Codes ----------------------------------------------------------------------------------------------------------------


def test_the_classes_of_our_data_sets_have_codes_that_the_standard_knows():
    from pydicom.sr._concepts_dict import concepts

    known = {code for codes in concepts["SCT"].values() for code in codes}
    beside = {"74281007": "Myocardium", "41329004": "Polyp"}  # of SNOMED CT, in no context group of DICOM
    for code in shipped().values():
        for _, value, meaning in (code.category, code.type, *([code.modifier] if code.modifier else [])):
            assert value in known or beside[value] == meaning
    for name in ("aorta", "kidney_left", "Left Kidney", "left ventricle", "polyp", "lesion", "RNFL", "anterior lip"):
        assert code_of(name).type[1] != "85756007", name
    assert code_of("gizmo").type == code_of("gizmo").category


def test_a_table_of_ones_own(tmp_path: Path):
    path = tmp_path / "codes.yaml"
    path.write_text("liver: {type: [SCT, 10200004, Liver], color: '#AA0000'}\n")
    assert read_codes(path)["liver"].type == ("SCT", "10200004", "Liver")
    path = tmp_path / "codes.json"
    path.write_text('{"liver": {"type": ["99LOCAL", "L1", "Leber, grün"]}}')
    assert read_codes(path)["liver"].type == ("99LOCAL", "L1", "Leber, grün")


WRONG = {
    "liver: [SCT, 1, Liver]\n": "liver: must be a mapping of fields",
    "liver: {}\n": "liver.type: missing",
    "liver: {type: [SCT, '1']}\n": "liver.type.2: missing",
    "liver: {type: [SCT, '1', Liver], colour: red}\n": "liver.colour: unknown field",
    "liver: {type: [SCT, '1', Liver], color: red}\n": "liver.color: string should match pattern",
    "liver: {type: [SCT, '12345678901234567', Liver]}\n": "liver.type.1: string should match pattern",
    "- liver\n": "must be a mapping of fields, got ['liver']",
    "a: b: c\n": "is no YAML or JSON (",
}


@pytest.mark.parametrize("content", WRONG)
def test_a_wrong_table_is_one_line(tmp_path: Path, content: str):
    path = tmp_path / "codes.yaml"
    path.write_text(content)
    with pytest.raises(UserError) as caught:
        read_codes(path)
    assert str(caught.value).startswith(f"--segment-codes {path}: ")
    assert WRONG[content].lower() in str(caught.value).lower()
    assert "\n" not in str(caught.value)
