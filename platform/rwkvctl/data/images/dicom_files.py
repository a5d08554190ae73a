"""Which files of a folder are which DICOM series, and which of those are scans: from their headers, without a pixel."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rwkvctl.base.errors import UserError
from rwkvctl.base.files import printable
from rwkvctl.data.images import itk
from rwkvctl.data.images.dicom_frames import ENHANCED

READ = [
    "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "SeriesNumber", "SeriesDescription", "Modality", "ImageType",
    "Rows", "Columns", "SamplesPerPixel", "NumberOfFrames", "ImagePositionPatient", "ImageOrientationPatient",
    "InstanceNumber", "SpecificCharacterSet",
]  # fmt: skip
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
"""How the classes of screenshots and scanned films begin."""
NO_IMAGES = frozenset(
    {"SR", "SEG", "PR", "KO", "REG", "RTSTRUCT", "RTPLAN", "RTDOSE", "RTRECORD", "FID", "RWV", "DOC", "AU", "ECG"}
)
SAME_PLACE_MM = 0.01
SAME_DIRECTION = 1e-3


class Series(NamedTuple):
    """One volume: a DICOM series, or of a series with several images at every place (phases, echoes) one of them."""

    uid: str
    number: str
    description: str
    files: tuple[Path, ...]
    """In the order in which they lie in the body, along the normal of their rows and columns."""
    phase: int | None = None
    """Which of several, from 1 on."""

    @property
    def title(self) -> str:
        """How messages name it."""
        words = [f"series {self.number}" if self.number else "series", self.description, f"({self.uid})"]
        return " ".join(word for word in words if word) + (f" phase {self.phase}" if self.phase else "")


class Grouped(NamedTuple):
    """The volumes in natural order, and of every other series a line that says why it is none."""

    series: list[Series]
    skipped: list[str]
    images: int
    """How many files of DICOM there were."""


def grouped(files: Iterable[Path]) -> Grouped:
    """All DICOM series among files; those that are none of DICOM are passed over. UserError where pydicom lacks."""
    headers: dict[str, dict[str, tuple[Path, Header]]] = defaultdict(dict)
    skipped: list[str] = []
    dicom = [file for file in files if itk.is_dicom(file) and file.name.upper() != "DICOMDIR"]
    for file in dicom:
        header = _header(file)
        if not header:
            skipped.append(f"{printable(file.name)}: its DICOM header cannot be read, or is of no series")
            continue
        # One image that is there twice, under two names, is one.
        headers[str(header["SeriesInstanceUID"])].setdefault(str(header.get("SOPInstanceUID", file)), (file, header))
    every = sorted(headers.items(), key=lambda item: _number(next(iter(item[1].values()))[1], "SeriesNumber", np.inf))
    series: list[Series] = []
    for uid, images in every:
        found = list(images.values())
        first = found[0][1]
        named = Series(uid, _text(first, "SeriesNumber"), _text(first, "SeriesDescription"), tuple(f for f, _ in found))
        reason = _unsuitable([header for _, header in found])
        volumes = [] if reason else _volumes(named, found)
        if not reason and not volumes:
            reason = "has not the same number of images at each place"
        series += volumes
        skipped += [f"{named.title}: {reason}"] if reason else []
    flat = {file for images in headers.values() for file, header in images.values() if _is_flat(header)}
    alone = [each for each in series if len(each.files) == 1 and each.files[0] in flat]
    if len(alone) < len(series):
        skipped += [f"{each.title}: is one image beside volumes" for each in alone]
        series = [each for each in series if each not in alone]
    return Grouped(series, skipped, len(dicom))


Header = Mapping[str, Any]
"""Of the attributes `READ` those that a file has."""


def _header(file: Path) -> Header:
    """Empty for what is no file of a series."""
    try:
        import pydicom
    except ModuleNotFoundError:
        raise UserError(f"input {file}: DICOM needs pydicom: pip install 'rwkvctl[scans]'") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of values against the standard
            read = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=READ)
            header = {name: value for name in READ if (value := read.get(name)) is not None}
    except Exception:  # pydicom raises nearly anything on a broken file
        return {}
    return header if "SeriesInstanceUID" in header else {}


def _is_flat(header: Header) -> bool:
    return header.get("SOPClassUID") not in ENHANCED


def _text(header: Header, name: str) -> str:
    return " ".join(str(header.get(name, "")).split())


def _number(header: Header, name: str, otherwise: float) -> float:
    try:
        return float(header.get(name) or otherwise)
    except (TypeError, ValueError):
        return otherwise


def _unsuitable(headers: Sequence[Header]) -> str:
    """Why a series is no scan; "" for one that is."""
    first = headers[0]
    modality = _text(first, "Modality")
    if modality in NO_IMAGES or "Rows" not in first:
        return f"is no image ({modality or 'of unknown modality'})"
    if str(first.get("SOPClassUID", "")).startswith(SECONDARY_CAPTURE):
        return "is a secondary capture (a screenshot, or a film that was scanned)"
    if _number(first, "SamplesPerPixel", 1) != 1:
        return "is in colour"
    if "LOCALIZER" in [str(word).upper() for word in first.get("ImageType") or ()]:
        return "is a localiser"
    if first.get("SOPClassUID") in ENHANCED:
        return ""
    if any(_number(header, "NumberOfFrames", 1) > 1 for header in headers):
        return "has many frames in one file, and is no Enhanced CT, MR or PET; convert it to one file a slice"
    if len(headers) == 1:
        return ""
    if not all(_numbers(header, "ImagePositionPatient", 3) is not None for header in headers):
        return "does not say where its images lie (no ImagePositionPatient)"
    directions = [_numbers(header, "ImageOrientationPatient", 6) for header in headers]
    if any(each is None for each in directions):
        return "does not say how its images lie (no ImageOrientationPatient)"
    if any(np.abs(each - directions[0]).max() > SAME_DIRECTION for each in directions):  # type: ignore[operator]
        return "has images in several directions (a localiser?)"
    sizes = {(header.get("Rows"), header.get("Columns")) for header in headers}
    return f"has images of {len(sizes)} sizes" if len(sizes) > 1 else ""


def _numbers(header: Header, name: str, count: int) -> NDArray[np.float64] | None:
    try:
        numbers = np.array([float(each) for each in header.get(name) or ()])
    except (TypeError, ValueError):
        return None
    return numbers if len(numbers) == count and np.isfinite(numbers).all() else None


def _volumes(named: Series, found: list[tuple[Path, Header]]) -> list[Series]:
    """The volumes of a series: one, or where every place has as many images several, in the scanner's own order; none
    where places have different numbers of them."""
    if found[0][1].get("SOPClassUID") in ENHANCED:
        several = len(found) > 1
        return [
            named._replace(files=(file,), phase=n if several else None) for n, (file, _) in enumerate(found, start=1)
        ]
    if len(found) == 1:
        return [named]
    direction = _numbers(found[0][1], "ImageOrientationPatient", 6)
    assert direction is not None
    normal = np.cross(direction[:3], direction[3:])
    places: dict[int, list[tuple[float, Path]]] = defaultdict(list)
    for file, header in found:
        position = _numbers(header, "ImagePositionPatient", 3)
        assert position is not None
        images = places[round(float(normal @ position) / SAME_PLACE_MM)]
        images.append((_number(header, "InstanceNumber", 0), file))
    ordered = [sorted(places[place]) for place in sorted(places)]
    counts = {len(images) for images in ordered}
    if len(counts) > 1:
        return []
    phases = [tuple(images[phase][1] for images in ordered) for phase in range(counts.pop())]
    if len(phases) == 1:
        return [named._replace(files=phases[0])]
    return [named._replace(files=files, phase=number) for number, files in enumerate(phases, start=1)]
