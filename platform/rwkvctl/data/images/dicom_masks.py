"""Masks as hospitals have them: DICOM Segmentations (SEG), whose frames say where they lie, and structure sets
(RTSTRUCT), whose contours are points in the body. Both refer to the series that they were drawn on.

A pixel is in a contour where its centre is. Contours of one region in one slice are counted even and odd, so that a
contour in a contour is a hole, as is the part between the two sides of a keyhole.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rwkvctl.base.errors import BadFile
from rwkvctl.data.images.grid import Grid

OFF_SLICE = 0.1
"""Of the distance between slices: what lies farther from the middle of one lies between two."""
OUT_OF_PLANE = 0.25
"""Of it: the points of a contour that spread farther are in no slice."""
OFF_PIXEL = 0.51
"""Of a pixel, at any corner of a frame: half of one, as programs differ in what an origin is."""
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
Ids = NDArray[np.uint8]


class Segment(NamedTuple):
    """A region of a mask: its number there, and what it is called."""

    number: int
    name: str


class MaskObject(NamedTuple):
    """What a file says of itself: the series that it was drawn on, by UID, and its frame of reference."""

    path: Path
    kind: Literal["seg", "rtstruct"]
    series: tuple[str, ...]
    frame_of_reference: str
    segments: tuple[Segment, ...]


class Drawn(NamedTuple):
    """Class ids [x, y, z] on a grid, whether regions of several classes overlap, and what is doubtful."""

    ids: Ids
    overlap: bool
    notes: tuple[str, ...] = ()


def described(path: Path) -> MaskObject:
    """From its header; BadFile where it is damaged, or neither SEG nor RTSTRUCT."""
    made = _read(path, pixels=False)
    modality = str(made.get("Modality", ""))
    frame = str(made.get("FrameOfReferenceUID", ""))
    if modality == "SEG":
        segments = [
            Segment(int(own.SegmentNumber), _text(own.get("SegmentLabel")) or f"segment {own.SegmentNumber}")
            for own in made.get("SegmentSequence", ())
        ]
        series = [str(own.SeriesInstanceUID) for own in made.get("ReferencedSeriesSequence", ())]
        return MaskObject(path, "seg", tuple(series), frame, tuple(segments))
    if modality == "RTSTRUCT":
        rois = [
            Segment(int(own.ROINumber), _text(own.get("ROIName")) or f"ROI {own.ROINumber}")
            for own in made.get("StructureSetROISequence", ())
        ]
        frames = made.get("ReferencedFrameOfReferenceSequence", ())
        series = [
            str(own.SeriesInstanceUID)
            for reference in frames
            for study in reference.get("RTReferencedStudySequence", ())
            for own in study.get("RTReferencedSeriesSequence", ())
        ]
        frame = frame or next((str(own.get("FrameOfReferenceUID", "")) for own in frames), "")
        return MaskObject(path, "rtstruct", tuple(series), frame, tuple(rois))
    raise BadFile(f"{path}: is no DICOM-SEG and no RTSTRUCT ({modality or 'of unknown modality'})")


def drawn(path: Path, kind: str, numbers: Mapping[int, int], grid: Grid) -> Drawn:
    """The regions by number -> class id, where a later class wins; BadFile for what does not lie on the grid."""
    made = _read(path, pixels=True)
    return _of_seg(path, made, numbers, grid) if kind == "seg" else _of_contours(path, made, numbers, grid)


def _read(path: Path, *, pixels: bool) -> Any:
    import pydicom

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of values against the standard
            return pydicom.dcmread(path, stop_before_pixels=not pixels)
    except Exception as error:  # pydicom raises nearly anything on a broken file
        raise BadFile(f"{path}: its DICOM header cannot be read ({_brief(error)}); copy it again") from error


def _text(value: Any) -> str:
    return " ".join(str(value or "").split())


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:80]


class _Canvas:
    """Class ids that are drawn class by class."""

    def __init__(self, shape: tuple[int, ...]):
        self.ids = np.zeros(shape, np.uint8)
        self.overlap = False

    def draw(self, where: tuple[Any, ...], inside: NDArray[np.bool_], own: int) -> None:
        """In a slice of the ids."""
        view = self.ids[where]
        self.overlap = self.overlap or bool(((view != 0) & (view != own) & inside).any())
        view[inside & (view < own)] = own


# DICOM-SEG ----------------------------------------------------------------------------------------------------------


def _of_seg(path: Path, made: Any, numbers: Mapping[int, int], grid: Grid) -> Drawn:
    from pydicom.pixels import iter_pixels

    canvas = _Canvas(grid.shape)
    shared = (made.get("SharedFunctionalGroupsSequence") or [{}])[0]
    frames = made.get("PerFrameFunctionalGroupsSequence") or ()
    kind = str(made.get("SegmentationType", "BINARY"))
    if kind == "FRACTIONAL" and str(made.get("SegmentationFractionalType", "")) == "PROBABILITY":
        raise BadFile(f"{path}: holds probabilities, not a mask; save a BINARY segmentation")
    half = int(made.get("MaximumFractionalValue", 1)) / 2 if kind == "FRACTIONAL" else 0
    try:
        pixels = list(iter_pixels(made))
    except Exception as error:  # pydicom's decoders raise nearly anything on broken data
        raise BadFile(f"{path}: its pixels cannot be read ({_brief(error)}); copy it again") from error
    if len(pixels) != len(frames):
        raise BadFile(f"{path}: has {len(pixels)} frames, and says of {len(frames)} where they lie; copy it again")
    for frame, values in zip(frames, pixels, strict=True):
        place = _place(path, frame, shared, values.shape, grid)
        turned = values.T if place.swapped else values  # [row, column] to the grid's two axes, rising
        where, inside = place.on(turned[:: place.steps[0], :: place.steps[1]], grid.shape)
        if kind == "LABELMAP":
            for number, own in sorted(numbers.items(), key=lambda item: item[1]):
                canvas.draw(where, inside == number, own)
            continue
        number = int(frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
        if number in numbers:
            canvas.draw(where, inside > half, numbers[number])
    return Drawn(canvas.ids, canvas.overlap)


class _Place(NamedTuple):
    """Where a frame lies: across `axis` of the grid at `level`; whether its rows go along the first of the other two
    axes or (swapped) its columns do; the steps that make both rise; where the first pixel comes to lie."""

    axis: int
    level: int
    swapped: bool
    steps: tuple[int, int]
    starts: tuple[int, int]

    def on(self, pixels: NDArray[Any], shape: Sequence[int]) -> tuple[tuple[Any, ...], NDArray[Any]]:
        """The slice of the grid that the frame covers, and those of its pixels that lie on the grid."""
        others = [n for n in range(3) if n != self.axis]
        if not 0 <= self.level < shape[self.axis]:
            return (slice(0, 0),) * 3, np.zeros((0, 0, 0), pixels.dtype)[0]
        where: list[Any] = [self.level] * 3
        cuts = []
        for axis, start, size in zip(others, self.starts, pixels.shape, strict=True):
            low, high = max(0, start), min(shape[axis], start + size)
            where[axis] = slice(low, max(low, high))
            cuts.append(slice(low - start, max(low, high) - start))
        return tuple(where), pixels[tuple(cuts)]


def _place(path: Path, frame: Any, shared: Any, shape: Sequence[int], grid: Grid) -> _Place:
    """BadFile where a frame is turned against the grid, of other pixels, or between two slices."""

    def of(group: str) -> Any:
        return (frame.get(group) or shared.get(group) or [None])[0]

    try:
        position = np.array(of("PlanePositionSequence").ImagePositionPatient, float)
        direction = np.array(of("PlaneOrientationSequence").ImageOrientationPatient, float)
        spacing = np.array(of("PixelMeasuresSequence").PixelSpacing, float)
    except (AttributeError, TypeError, ValueError) as error:
        raise BadFile(f"{path}: does not say where its frames lie; save it on its series again") from error
    plane = np.eye(4)[:, [0, 1, 3]]  # of [row, column, 1]
    plane[:3, 0], plane[:3, 1], plane[:3, 2] = direction[3:] * spacing[0], direction[:3] * spacing[1], position
    indices = np.linalg.inv(grid.affine) @ _LPS_TO_RAS @ plane
    steps = np.rint(indices[:3, :2])
    off = np.abs(indices[:3, :2] - steps) @ np.array(shape, float)
    if off.max() > OFF_PIXEL or sorted(np.abs(steps).sum(0)) != [1, 1] or np.abs(steps).sum(1).max() > 1:
        raise BadFile(f"{path}: its frames do not lie on the pixels of their series; draw it on the series itself")
    axis = int(np.flatnonzero(np.abs(steps).sum(1) == 0)[0])
    start = indices[:3, 2]
    if abs(start[axis] - round(start[axis])) > OFF_SLICE:
        raise BadFile(f"{path}: a frame lies between two slices of its series; draw it on the series itself")
    others = [n for n in range(3) if n != axis]
    if np.abs(start[others] - np.rint(start[others])).max() > OFF_PIXEL:
        raise BadFile(f"{path}: its frames do not lie on the pixels of their series; draw it on the series itself")
    swapped = steps[others[0], 0] == 0
    first, second = (1, 0) if swapped else (0, 1)
    signs = int(steps[others[0], first]), int(steps[others[1], second])
    sizes = shape[first], shape[second]
    ends = (size - 1 if sign < 0 else 0 for sign, size in zip(signs, sizes, strict=True))
    starts = [round(float(start[n])) - end for n, end in zip(others, ends, strict=True)]
    return _Place(axis, round(float(start[axis])), bool(swapped), signs, (starts[0], starts[1]))


# RTSTRUCT -----------------------------------------------------------------------------------------------------------


def _of_contours(path: Path, made: Any, numbers: Mapping[int, int], grid: Grid) -> Drawn:
    canvas = _Canvas(grid.shape)
    axis = 2
    between = outside = skipped = 0
    regions = {int(own.get("ReferencedROINumber", -1)): own for own in made.get("ROIContourSequence", ())}
    inverse = np.linalg.inv(grid.affine) @ _LPS_TO_RAS
    for number, own in sorted(numbers.items(), key=lambda item: item[1]):
        slices: dict[int, NDArray[np.bool_]] = {}
        for contour in regions.get(number, {}).get("ContourSequence", ()):
            if not str(contour.get("ContourGeometricType", "")).startswith("CLOSED"):
                skipped += 1
                continue
            points = _points(path, contour, inverse)
            depth = points[:, axis]
            if np.ptp(depth) > OUT_OF_PLANE:
                raise BadFile(f"{path}: a contour of ROI {number} lies across slices; draw it on those of its series")
            index = round(float(depth.mean()))
            if not 0 <= index < grid.shape[axis]:
                outside += 1
                continue
            between += abs(float(depth.mean()) - index) > OFF_SLICE
            filled = inside_polygon(points[:, :2], grid.shape[:2])
            slices[index] = slices[index] ^ filled if index in slices else filled
        for index, inside in slices.items():
            canvas.draw((slice(None), slice(None), index), inside, own)
    notes = [
        f"{count} contours {what}"
        for count, what in (
            (between, "lie between two slices and were drawn on the nearest"),
            (outside, "lie outside of their series and were left out"),
            (skipped, "are points or open lines and were left out"),
        )
        if count
    ]
    return Drawn(canvas.ids, canvas.overlap, tuple(notes))


def _points(path: Path, contour: Any, inverse: NDArray[Any]) -> NDArray[np.float64]:
    """(n, 3) in voxels."""
    try:
        points = np.array(contour.ContourData, float).reshape(-1, 3)
    except (AttributeError, TypeError, ValueError) as error:
        raise BadFile(f"{path}: a contour has no whole points ({_brief(error)}); export it again") from error
    return np.asarray((np.c_[points, np.ones(len(points))] @ inverse.T)[:, :3])


def inside_polygon(points: NDArray[np.float64], shape: Sequence[int]) -> NDArray[np.bool_]:
    """Which pixel centres [x, y], the whole numbers, lie in a closed polygon (n, 2), by the even-odd rule."""
    filled = np.zeros(tuple(shape), bool)
    first, second = points, np.roll(points, -1, axis=0)
    low, high = np.minimum(first[:, 1], second[:, 1]), np.maximum(first[:, 1], second[:, 1])
    for y in range(max(0, int(np.ceil(low.min()))), min(shape[1], int(np.floor(high.max())) + 1)):
        crossed = (low <= y) & (y < high)  # half-open, so that a corner counts once
        a, b = first[crossed], second[crossed]
        crossings = np.sort(a[:, 0] + (y - a[:, 1]) * (b[:, 0] - a[:, 0]) / (b[:, 1] - a[:, 1]))
        for left, right in zip(crossings[::2], crossings[1::2], strict=True):
            filled[max(0, int(np.ceil(left))) : max(0, int(np.ceil(right))), y] ^= True
    return filled
