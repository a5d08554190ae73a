"""DICOM series with masks that were drawn on them, as a PACS exports them: SEG by highdicom, RTSTRUCT by pydicom."""

from __future__ import annotations

import datetime
import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from rwkvctl.data.convert.synth.output import Array, write
from rwkvctl.data.convert.synth.scans import CLASSES, Scan, scan

OPTIONS = {
    "seg": "--classes 'background,right ventricle,myocardium,left ventricle'",
    "labelmap": "--classes 'background,right ventricle,myocardium,left ventricle'",
    "rtstruct": "--classes background,LV,LV_wall",
}
ROOT = "1.2.826.0.1.3680043.8.498."
DAY = datetime.datetime(2024, 3, 1, 12)


def write_seg(folder: Path, n: int, size: int, seed: int) -> None:
    """`P1/CT/*.dcm` and one BINARY segmentation of three segments a patient, in a folder of its own."""
    _write_segmentations(folder, n, size, seed, "BINARY")


def write_labelmap(folder: Path, n: int, size: int, seed: int) -> None:
    """The same as LABELMAP."""
    _write_segmentations(folder, n, size, seed, "LABELMAP")


def _write_segmentations(folder: Path, n: int, size: int, seed: int, kind: str) -> None:
    for number in range(1, n + 1):
        own = scan(seed, number, size)
        images = _series(folder / f"P{number}" / "CT", own, seed, number)
        write(folder / f"P{number}" / "masks" / "1-1.dcm", _segmentation(images, own.label, kind, seed, number))


def write_rtstruct(folder: Path, n: int, size: int, seed: int) -> None:
    """`P1/*.dcm` and a structure set beside them: the left ventricle, and the wall, which has it as a hole."""
    for number in range(1, n + 1):
        own = scan(seed, number, size)
        images = _series(folder / f"P{number}", own, seed, number)
        write(folder / f"P{number}" / "RS.dcm", _structures(images, own, seed, number))


def _uid(*parts: object) -> str:
    import pydicom.uid

    return str(pydicom.uid.generate_uid(prefix=ROOT, entropy_srcs=[str(part) for part in parts]))


def _series(folder: Path, own: Scan, seed: int, number: int) -> list[Any]:
    """A file a slice, the names in no order of theirs; HU by a slope and an intercept."""
    import pydicom
    from pydicom.dataset import Dataset, FileMetaDataset

    made = []
    for z in range(len(own.image)):
        image = Dataset()
        image.file_meta = FileMetaDataset()
        image.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        image.SOPClassUID = pydicom.uid.CTImageStorage
        image.SOPInstanceUID = _uid(seed, number, z)
        image.StudyInstanceUID, image.SeriesInstanceUID = _uid(seed, number, "study"), _uid(seed, number, "series")
        image.FrameOfReferenceUID = _uid(seed, number, "frame")
        image.PatientID, image.PatientName, image.Modality = f"P{number}", "A^B", "CT"
        image.PatientBirthDate = image.PatientSex = image.AccessionNumber = image.StudyID = ""
        image.StudyDate, image.StudyTime, image.ReferringPhysicianName = "20240301", "120000", ""
        image.Manufacturer, image.SeriesNumber, image.InstanceNumber = "phantom", 2, len(own.image) - z
        depth, row, column = own.spacing
        image.PixelSpacing, image.SliceThickness = [row, column], depth
        image.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        image.ImagePositionPatient = [own.origin[2], own.origin[1], round(own.origin[0] + z * depth, 3)]
        image.Rows, image.Columns = own.image.shape[1:]
        image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
        image.BitsAllocated = image.BitsStored = 16
        image.HighBit, image.PixelRepresentation = 15, 0
        image.RescaleIntercept, image.RescaleSlope = -1024, 1
        image.PixelData = (own.image[z].astype(np.int32) + 1024).astype(np.uint16).tobytes()
        made.append(image)
        _save(folder / f"IM{(z * 7) % len(own.image):04d}.dcm", image)
    return made


def _save(path: Path, made: Any) -> None:
    buffer = io.BytesIO()
    made.save_as(buffer, enforce_file_format=True)
    write(path, buffer.getvalue())


def _segmentation(images: list[Any], label: Array, kind: str, seed: int, number: int) -> bytes:
    """Frames without a pixel are left out, as usual."""
    import highdicom as hd
    from pydicom.sr.codedict import codes

    segments = [
        hd.seg.SegmentDescription(
            segment_number=place,
            segment_label=name,
            segmented_property_category=codes.SCT.AnatomicalStructure,
            segmented_property_type=codes.SCT.Heart,
            algorithm_type="MANUAL",
        )
        for place, name in enumerate(CLASSES[1:], start=1)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = hd.seg.Segmentation(
            source_images=images,
            pixel_array=label,
            segmentation_type=kind,
            segment_descriptions=segments,
            series_instance_uid=_uid(seed, number, "masks"),
            series_number=9,
            sop_instance_uid=_uid(seed, number, "mask"),
            instance_number=1,
            manufacturer="phantom",
            manufacturer_model_name="phantom",
            software_versions="1",
            device_serial_number="1",
        )
    _on_one_day(made)
    buffer = io.BytesIO()
    made.save_as(buffer)
    return buffer.getvalue()


def _on_one_day(made: Any) -> None:
    """The same bytes on every day."""
    date, time = DAY.strftime("%Y%m%d"), DAY.strftime("%H%M%S")
    dimension = _uid(made.SOPInstanceUID, "dimensions")
    for element in made.iterall():
        if element.VR == "DA" and element.value:
            element.value = date
        elif element.VR == "TM" and element.value:
            element.value = time
        elif element.VR == "DT" and element.value:
            element.value = date + time
        elif element.keyword == "DimensionOrganizationUID":
            element.value = dimension


def _structures(images: list[Any], own: Scan, seed: int, number: int) -> bytes:
    """Contours along the edges of pixels, so that those of a pixel's centre are told from those of its corner."""
    import pydicom
    from pydicom.dataset import Dataset, FileMetaDataset

    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    made.SOPClassUID, made.SOPInstanceUID = pydicom.uid.RTStructureSetStorage, _uid(seed, number, "structures")
    made.StudyInstanceUID, made.SeriesInstanceUID = images[0].StudyInstanceUID, _uid(seed, number, "rt")
    made.PatientID, made.Modality, made.StructureSetLabel = images[0].PatientID, "RTSTRUCT", "heart"
    series, study, frame = Dataset(), Dataset(), Dataset()
    series.SeriesInstanceUID = images[0].SeriesInstanceUID
    study.RTReferencedSeriesSequence = [series]
    frame.FrameOfReferenceUID, frame.RTReferencedStudySequence = images[0].FrameOfReferenceUID, [study]
    made.ReferencedFrameOfReferenceSequence = [frame]
    made.StructureSetROISequence, made.ROIContourSequence = [], []
    regions = {"BODY": np.ones_like(own.label, bool), "LV": own.label == 3, "LV_wall": own.label == 2}
    for place, (name, mask) in enumerate(regions.items(), start=1):
        roi, drawn = Dataset(), Dataset()
        roi.ROINumber, roi.ROIName, roi.ReferencedFrameOfReferenceUID = place, name, frame.FrameOfReferenceUID
        drawn.ReferencedROINumber = place
        drawn.ContourSequence = [_contour(points, images[z]) for z in range(len(mask)) for points in outlines(mask[z])]
        made.StructureSetROISequence.append(roi)
        made.ROIContourSequence.append(drawn)
    buffer = io.BytesIO()
    made.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def outlines(mask: Array) -> list[Array]:
    """Closed contours (n, 2) of [column, row] along the edges of a mask's pixels, holes among them."""
    import cv2

    large: Any = np.kron(np.pad(mask, 1).astype(np.uint8), np.ones((4, 4), np.uint8))
    found, _ = cv2.findContours(large, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    return [np.asarray((points[:, 0].astype(float) + 0.5) / 4 - 1.5) for points in found if len(points) > 2]


def _contour(points: Array, image: Any) -> Any:
    from pydicom.dataset import Dataset

    row, column = image.PixelSpacing
    x, y, z = (float(own) for own in image.ImagePositionPatient)
    made = Dataset()
    made.ContourGeometricType, made.NumberOfContourPoints = "CLOSED_PLANAR", len(points)
    spread = [(round(x + at[0] * column, 4), round(y + at[1] * row, 4), z) for at in points]
    made.ContourData = [value for point in spread for value in point]
    return made


def trap_lost_series(folder: Path) -> Path:
    """The series that a mask was drawn on is not there."""
    top = min(path.parent for path in folder.rglob("IM0000.dcm"))
    for path in top.glob("IM*.dcm"):
        path.unlink()
    return next(path for path in sorted(folder.rglob("*.dcm")) if not path.name.startswith("IM"))
