"""DICOM Segmentation objects: a mask beside the series that it was made of, as PACS and viewers take it.

Every frame refers to the image that it lies on, which is what viewers ask for (`ReferencedSeriesSequence`); where it
lies in the body comes from that image and not from a grid that was fitted to all of them.
"""

from __future__ import annotations

import importlib.util
import io
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rwkvctl.base.errors import BadFile, UserError
from rwkvctl.base.lineage import code_version
from rwkvctl.config.specs.segments import Code, SegmentCode, code_of
from rwkvctl.data.images import dicom_frames

Kind = Literal["BINARY", "LABELMAP"]
"""Bits by class, which all viewers read; or ids, as small as a mask and read by few (2026)."""
MIME = "application/dicom"
NUMBER_ABOVE = 1000
"""How far above its source's the number of a mask's series is."""
UTF_8 = "ISO_IR 192"
LONGEST = 64
"""Characters of a short text (LO) in DICOM."""
NEEDED = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID", "Rows", "Columns")
OFTEN_ABSENT = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate", "StudyTime",
    "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip
"""What must be there, if empty, in a mask's file, and lacks in many images that were made anonymous."""


class Maker(NamedTuple):
    """What made a mask."""

    name: str
    """Of the algorithm: the model's reference or name."""
    version: str
    """Of the model: of its registry, or of its weights' hash."""
    parameters: Mapping[str, str] = {}


def encoded(
    images: Sequence[Path],
    mask: NDArray[np.uint8],
    classes: Sequence[str],
    maker: Maker,
    *,
    kind: Kind = "BINARY",
    codes: Mapping[str, SegmentCode] | None = None,
    keep_empty_frames: bool = False,
) -> bytes:
    """The file of a segmentation of one DICOM series.

    Args:
        images: the series' files in the order of the mask's slices, see `itk.ItkScan.files`; of a series in one file
            with many frames that file alone. Only their headers are read.
        mask: uint8 [x, y, z] class ids on the series' grid.
        classes: names by id, the background first. A segment's number is its class's id, and every class is described,
            found or not.
        codes: a user's own, by class; see `config.specs.segments`.
        keep_empty_frames: write frames without a pixel of their class too; some viewers want one for every image.

    Raises:
        UserError: highdicom is not installed.
        BadFile: a header cannot be read, or lacks what a reference needs; SimpleITK's reader needs less.
    """
    check_installed()
    import highdicom as hd

    headers = [_header(path) for path in images]
    first = headers[0]
    numbers = first.get("SeriesNumber")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is odd in the source, and of masks without a voxel
        try:
            made = hd.seg.Segmentation(
                source_images=headers,
                pixel_array=_pixels(images, mask),
                segmentation_type=kind,
                segment_descriptions=[
                    _segment(number, name, maker, code_of(name, codes))
                    for number, name in enumerate(classes[1:], start=1)
                ],
                series_instance_uid=hd.UID(),
                series_number=NUMBER_ABOVE + (int(numbers) if numbers is not None else 0),
                sop_instance_uid=hd.UID(),
                instance_number=1,
                manufacturer="rwkvctl",
                manufacturer_model_name="rwkvctl predict",
                software_versions=code_version(),
                device_serial_number=_short(maker.version),
                content_label="SEGMENTATION",
                content_description=_short(f"By {maker.name}"),
                series_description=_short(f"Segmentation by {maker.name}"),
                omit_empty_frames=not keep_empty_frames and bool(mask.any()),  # a file has one frame at least
                specific_character_set=_characters(
                    first, [*classes, maker.name, maker.version, *maker.parameters.values()]
                ),
            )
        except (ValueError, AttributeError, TypeError, KeyError) as error:
            raise BadFile(f"{images[0]}: no DICOM-SEG can refer to it ({_one_line(error)})") from error
        file = io.BytesIO()
        made.save_as(file)
    return file.getvalue()


def _pixels(images: Sequence[Path], mask: NDArray[np.uint8]) -> Any:
    """In the order of the images; of frames in one file, with the places by which highdicom finds them."""
    if len(images) == 1 and dicom_frames.is_enhanced(images[0]):
        return dicom_frames.ids_on(images[0], mask)
    return np.ascontiguousarray(mask.transpose(2, 1, 0))


def check_installed() -> None:
    """UserError where the library is not there."""
    if importlib.util.find_spec("highdicom") is None:
        raise UserError("DICOM-SEG needs highdicom: pip install 'rwkvctl[scans]'")


def _header(path: Path) -> Any:
    """An image's header, made whole where what lacks may be empty."""
    import pydicom
    from pydicom.errors import InvalidDicomError

    try:
        header = pydicom.dcmread(path, stop_before_pixels=True)
    except (InvalidDicomError, OSError, ValueError, NotImplementedError) as error:
        raise BadFile(f"{path}: its DICOM header cannot be read ({_one_line(error)})") from error
    if lacking := [name for name in NEEDED if name not in header]:
        raise BadFile(f"{path}: its DICOM header lacks {', '.join(lacking)}, so that no DICOM-SEG can refer to it")
    for name in OFTEN_ABSENT:
        if name not in header:
            setattr(header, name, None)
    return header


def _characters(header: Any, texts: Sequence[str]) -> str | None:
    """The source's own character set where our texts are in it; UTF-8, too, for one that changes within a text."""
    own = header.get("SpecificCharacterSet")
    return own if (own is None or isinstance(own, str)) and all(text.isascii() for text in texts) else UTF_8


def _segment(number: int, name: str, maker: Maker, code: SegmentCode) -> Any:
    """The description of a class."""
    import highdicom as hd
    from pydicom.sr.codedict import codes as dicom_codes

    from rwkvctl.pictures.palette import palette

    colour = [int(code.color[at : at + 2], 16) for at in (1, 3, 5)] if code.color else palette()[number].tolist()
    described = hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=_short(name),
        segmented_property_category=_concept(code.category),
        segmented_property_type=_concept(code.type),
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name=_short(maker.name),
            family=dicom_codes.DCM.ArtificialIntelligence,
            version=_short(maker.version),
            source="rwkvctl",
            parameters=dict(maker.parameters) or None,
        ),
        tracking_uid=hd.UID(),
        tracking_id=_short(name),
        display_color=hd.color.CIELabColor.from_rgb(*colour),
    )
    if code.modifier is not None:
        [kind] = described.SegmentedPropertyTypeCodeSequence
        kind.SegmentedPropertyTypeModifierCodeSequence = [_concept(code.modifier)]
    return described


def _concept(code: Code) -> Any:
    import highdicom as hd

    scheme, value, meaning = code
    return hd.sr.CodedConcept(value=value, scheme_designator=scheme, meaning=meaning)


def _short(text: str) -> str:
    """As a text of DICOM can be: without what separates values, and not too long."""
    plain = "".join(letter if letter.isprintable() else " " for letter in text.replace("\\", "/")).strip()
    return plain[:LONGEST] or "unnamed"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:150]
