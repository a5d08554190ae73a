"""DICOM as other programs write it: volumes in one file (Enhanced), by highdicom and frame by frame, and DICOM-SEG by
highdicom and, where it is installed, by dcmqi."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.sr.codedict import codes

from rwkvctl.base.errors import UserError
from rwkvctl.data.convert import synth
from rwkvctl.data.convert.prepare import prepare
from rwkvctl.data.convert.synth.scans import CLASSES, scan
from rwkvctl.data.store.manifest import Manifest
from rwkvctl.data.store.reader import Reader

from ..images.dicom_series import enhanced

DCMQI = shutil.which("itkimage2segimage")
PATIENTS = range(1, 7)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """`P1/CT/*.dcm` of six patients, whose masks are still to be drawn."""
    made = synth.write("dicom:seg", tmp_path / "source", n=6, size=32)
    for number in PATIENTS:
        mask_of(made, number).unlink()
    return made


def mask_of(tree: Path, number: int) -> Path:
    return tree / f"P{number}" / "masks" / "1-1.dcm"


def slices_of(tree: Path, number: int) -> list[str]:
    """From the feet up, as ITK orders them."""
    return list(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(tree / f"P{number}" / "CT")))


def checked(tree: Path, tmp_path: Path) -> Manifest:
    """Prepared, with the labels and the images of the phantoms."""
    made = prepare("dicom", [tree], tmp_path / "set", classes=list(CLASSES), range=(-1000, 1000))
    reader = Reader(made)
    for number in PATIENTS:
        rows = [row for row in range(len(reader)) if f"_p{number}" in reader.key(row)]
        own = scan(0, number, 32)
        masks, images = ([get(row) for row in rows] for get in (reader.mask, reader.image))
        mask, image = (found[0] if found[0].ndim == 3 else np.stack(found) for found in (masks, images))
        np.testing.assert_array_equal(mask, own.label)
        np.testing.assert_allclose(image, (np.clip(own.image, -1000, 1000) + 1000) / 2000, atol=1e-3)
        assert reader.meta(rows[0])["spacing_mm"] == pytest.approx(own.spacing)
    return made


# Enhanced -----------------------------------------------------------------------------------------------------------


def converted(tree: Path, number: int, file: Path) -> None:
    """By highdicom, as PACS convert old series."""
    images = [pydicom.dcmread(path) for path in slices_of(tree, number)]
    for image in images:
        image.PositionReferenceIndicator = image.PatientOrientation = ""
        image.ImageType, image.AcquisitionNumber, image.KVP = ["ORIGINAL", "PRIMARY", "AXIAL"], 1, 120
    hd.legacy.LegacyConvertedEnhancedCTImage(
        images, series_instance_uid=hd.UID(), series_number=5, sop_instance_uid=hd.UID(), instance_number=1
    ).save_as(file)


def frame_by_frame(tree: Path, number: int, file: Path) -> None:
    enhanced(tree / f"P{number}" / "CT", file)


def drawn(file: Path, label: np.ndarray, kind: str, out: Path) -> None:
    """By highdicom, on the frames in their order in the file."""
    image = pydicom.dcmread(file)
    places = [own.PlanePositionSequence[0].ImagePositionPatient[2] for own in image.PerFrameFunctionalGroupsSequence]
    segments = [
        hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=name,
            segmented_property_category=codes.SCT.AnatomicalStructure,
            segmented_property_type=codes.SCT.Heart,
            algorithm_type="MANUAL",
        )
        for number, name in enumerate(CLASSES[1:], start=1)
    ]
    hd.seg.Segmentation(
        [image],
        label[np.argsort(np.argsort(places))],
        segmentation_type=kind,
        segment_descriptions=segments,
        series_instance_uid=hd.UID(),
        series_number=9,
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer="x",
        manufacturer_model_name="x",
        software_versions="1",
        device_serial_number="1",
    ).save_as(out)


def make_enhanced(tree: Path, how: Callable[[Path, int, Path], None], kind: str = "BINARY") -> None:
    for number in PATIENTS:
        file = tree / f"P{number}" / "volume.dcm"
        how(tree, number, file)
        shutil.rmtree(tree / f"P{number}" / "CT")
        drawn(file, scan(0, number, 32).label, kind, mask_of(tree, number))


@pytest.mark.filterwarnings("ignore::UserWarning")  # highdicom's, of what old series lack
@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
@pytest.mark.parametrize("how", [converted, frame_by_frame])
def test_volumes_in_one_file(how: Callable[[Path, int, Path], None], kind: str, tree: Path, tmp_path: Path):
    make_enhanced(tree, how, kind)
    assert checked(tree, tmp_path).content.warnings == []


def without_a_frame(made: Any) -> None:
    size = made.Rows * made.Columns * 2
    middle = sorted(
        range(len(made.PerFrameFunctionalGroupsSequence)),
        key=lambda n: made.PerFrameFunctionalGroupsSequence[n].PlanePositionSequence[0].ImagePositionPatient[2],
    )[2]
    del made.PerFrameFunctionalGroupsSequence[middle]
    made.PixelData = made.PixelData[: middle * size] + made.PixelData[(middle + 1) * size :]
    made.NumberOfFrames -= 1


def cut_short(made: Any) -> None:
    made.PixelData = made.PixelData[: len(made.PixelData) // 2]


def nowhere(made: Any) -> None:
    for frame in made.PerFrameFunctionalGroupsSequence:
        del frame.PlanePositionSequence


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("spoil", [without_a_frame, cut_short, nowhere])
def test_files_whose_frames_are_no_volume_are_named(spoil: Callable[[Any], None], tree: Path, tmp_path: Path):
    make_enhanced(tree, frame_by_frame)
    file = tree / "P3" / "volume.dcm"
    made = pydicom.dcmread(file)
    spoil(made)
    made.save_as(file)
    with pytest.raises(UserError, match=r"P3/volume.dcm: its frames are no volume \(") as caught:
        prepare("dicom", [tree], tmp_path / "set", classes=list(CLASSES))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "set").exists()


# dcmqi --------------------------------------------------------------------------------------------------------------


def by_dcmqi(tree: Path, number: int, work: Path, *options: str, mirrored: bool = False) -> None:
    """From a NIfTI file on the grid of the series, which may be stored backwards along all axes."""
    assert DCMQI is not None
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(slices_of(tree, number))
    label = sitk.GetImageFromArray(scan(0, number, 32).label.astype(np.int16))
    label.CopyInformation(reader.Execute())
    sitk.WriteImage(sitk.Flip(label, [True] * 3) if mirrored else label, str(work / "label.nii.gz"))

    def code(value: str, meaning: str) -> dict[str, str]:
        return {"CodeValue": value, "CodingSchemeDesignator": "SCT", "CodeMeaning": meaning}

    segments = [
        {
            "labelID": number,
            "SegmentLabel": name,
            "SegmentDescription": name,
            "SegmentAlgorithmType": "MANUAL",
            "SegmentedPropertyCategoryCodeSequence": code("123037004", "Anatomical Structure"),
            "SegmentedPropertyTypeCodeSequence": code("80891009", "Heart"),
        }
        for number, name in enumerate(CLASSES)
        if number
    ]
    told = {"ContentCreatorName": "A^B", "SeriesDescription": "x", "SeriesNumber": "9", "InstanceNumber": "1"}
    told |= {"ClinicalTrialSeriesID": "1", "ClinicalTrialTimePointID": "1"}
    (work / "told.json").write_text(json.dumps(told | {"segmentAttributes": [segments]}))
    command = [
        *(DCMQI, "--inputImageList", work / "label.nii.gz", "--inputDICOMDirectory", tree / f"P{number}" / "CT"),
        *("--outputDICOM", mask_of(tree, number), "--inputMetadata", work / "told.json", *options),
    ]
    subprocess.run(command, check=True, capture_output=True)


@pytest.mark.skipif(DCMQI is None, reason="dcmqi is not installed: pip install dcmqi")
@pytest.mark.parametrize(
    "options", ["", "--skip 0", "--compress deflate", "--segmentationType labelmap", "--useLabelIDAsSegmentNumber"]
)
def test_masks_by_dcmqi(options: str, tree: Path, tmp_path: Path):
    for number in PATIENTS:
        by_dcmqi(tree, number, tmp_path, *options.split(), mirrored=number % 2 == 0)
    assert checked(tree, tmp_path).content.warnings == []


@pytest.mark.skipif(DCMQI is None, reason="dcmqi is not installed: pip install dcmqi")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_masks_by_dcmqi_on_the_slices_of_a_volume_in_one_file(tree: Path, tmp_path: Path):
    """The series has another UID since; its frame of reference is the same."""
    for number in PATIENTS:
        by_dcmqi(tree, number, tmp_path)
        converted(tree, number, tree / f"P{number}" / "volume.dcm")
        shutil.rmtree(tree / f"P{number}" / "CT")
    notes = checked(tree, tmp_path).content.warnings
    assert len(notes) == 6
    assert all("the only one in its frame of reference was taken" in note for note in notes)
