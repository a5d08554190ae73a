"""DICOM series as a scanner writes them: one slice a file, names that say nothing of the order, a patient."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian, generate_uid

OBLIQUE = ((0.8, 0.6, 0.0), (-0.36, 0.48, 0.8))
"""Where columns and rows lead, in DICOM's LPS: an axial slice, turned and tilted."""
STRAIGHT = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0))
JAPANESE = (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう")
GERMAN = ("ISO_IR 100", "Müller^Jörg")


def write_ct(
    folder: Path,
    hounsfield: np.ndarray,
    *,
    axes: tuple[tuple[float, ...], tuple[float, ...]] = STRAIGHT,
    spacing: tuple[float, float, float] = (0.7, 0.9, 2.5),
    origin: tuple[float, float, float] = (-20.0, -30.0, 40.0),
    patient: tuple[Any, str] = GERMAN,
    series: str | None = None,
    study: str | None = None,
    number: int = 3,
    description: str = "Abdomen venös",
    shift: tuple[float, float, float] = (0, 0, 0),
    **other: Any,
) -> Path:
    """A CT of HU (rows, columns, slices) as [y, x, z]; `shift` moves every slice against the one before it, as a tilted
    gantry does; `other` are further attributes, or with None such as are left out."""
    folder.mkdir(parents=True, exist_ok=True)
    series, study, place = series or generate_uid(), study or generate_uid(), generate_uid()
    columns, rows = np.array(axes[0]), np.array(axes[1])
    normal = np.cross(columns, rows)
    order = np.random.default_rng(len(folder.name)).permutation(hounsfield.shape[2])
    for name, z in enumerate(order):
        image = pydicom.Dataset()
        image.file_meta = FileMetaDataset()
        image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID = CTImageStorage
        image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID = generate_uid()
        image.SpecificCharacterSet, image.PatientName = patient
        image.PatientID, image.PatientBirthDate, image.PatientSex = "4711", "19600229", "O"
        image.StudyInstanceUID, image.SeriesInstanceUID, image.FrameOfReferenceUID = study, series, place
        image.StudyDate, image.StudyTime, image.StudyID, image.AccessionNumber = "20260102", "101112", "1", "A1"
        image.ReferringPhysicianName, image.Manufacturer, image.PositionReferenceIndicator = "", "Maker", ""
        image.Modality, image.SeriesNumber, image.InstanceNumber = "CT", number, int(z) + 1
        image.SeriesDescription, image.ImageType = description, ["ORIGINAL", "PRIMARY", "AXIAL"]
        image.ImageOrientationPatient = [*axes[0], *axes[1]]
        image.ImagePositionPatient = [
            round(float(each), 6) for each in np.array(origin) + z * (spacing[2] * normal + np.array(shift))
        ]
        image.PixelSpacing, image.SliceThickness = [spacing[1], spacing[0]], spacing[2]
        image.Rows, image.Columns = hounsfield.shape[:2]
        image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
        image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 12, 11, 0
        image.RescaleIntercept, image.RescaleSlope, image.RescaleType = -1024, 1, "HU"
        image.KVP, image.AcquisitionNumber = 120, 1
        image.PixelData = (hounsfield[:, :, z] + 1024).astype("<u2").tobytes()
        for key, value in other.items():
            if value is None:
                delattr(image, key)
            else:
                setattr(image, key, value)
        image.save_as(folder / f"IM{name:04d}", enforce_file_format=True)
    return folder


def enhanced(series: Path, file: Path) -> Path:
    """The slices of a series as the frames of one Enhanced CT, in an order that is none of places."""
    slices = [pydicom.dcmread(each) for each in sorted(series.iterdir())]
    made = pydicom.dcmread(sorted(series.iterdir())[0])
    made.SOPClassUID = made.file_meta.MediaStorageSOPClassUID = EnhancedCTImageStorage
    made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID = generate_uid()

    def item(**attributes: Any) -> pydicom.Dataset:
        one = pydicom.Dataset()
        for name, value in attributes.items():
            setattr(one, name, value)
        return one

    made.SharedFunctionalGroupsSequence = [
        item(
            PixelMeasuresSequence=[item(PixelSpacing=made.PixelSpacing, SliceThickness=made.SliceThickness)],
            PlaneOrientationSequence=[item(ImageOrientationPatient=made.ImageOrientationPatient)],
            PixelValueTransformationSequence=[item(RescaleIntercept=-1024, RescaleSlope=1, RescaleType="HU")],
        )
    ]
    made.PerFrameFunctionalGroupsSequence = [
        item(
            PlanePositionSequence=[item(ImagePositionPatient=each.ImagePositionPatient)],
            FrameContentSequence=[item(StackID="1", InStackPositionNumber=each.InstanceNumber)],
        )
        for each in slices
    ]
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "RescaleSlope",
                 "RescaleIntercept", "RescaleType"):  # fmt: skip
        if name in made:
            delattr(made, name)
    made.NumberOfFrames, made.PixelData = len(slices), b"".join(each.PixelData for each in slices)
    file.parent.mkdir(parents=True, exist_ok=True)
    made.save_as(file, enforce_file_format=True)
    return file
