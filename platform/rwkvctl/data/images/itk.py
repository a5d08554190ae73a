"""Scans that SimpleITK reads: NRRD and MetaImage files, and folders with the slices of one DICOM series.

ITK's world is LPS, that of `grid.Grid` RAS: their x and y have opposite signs.
"""

from __future__ import annotations

import locale
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rwkvctl.base.files import atomic_path
from rwkvctl.data.images import dicom_frames
from rwkvctl.data.images.grid import Grid

FILES = (".nrrd", ".mha")
DETACHED = {".nrrd": rb"(?im)^data ?file\s*:", ".mha": rb"(?im)^ElementDataFile\s*=\s*(?!LOCAL\b)\S"}
"""What stands in a header whose voxels are in another file, any on this machine."""
LONGEST_HEADER = 2**16
DICOM_AT, DICOM = 128, b"DICM"
UNEVEN = 0.01
"""Share of the distance between slices by which one may differ."""
TILTED_MM = 1.0
"""Shift of the last slice against the first from which on a series is said to be tilted."""


class Place(NamedTuple):
    """Where ITK's image lies: in mm, of LPS."""

    origin: tuple[float, ...]
    spacing: tuple[float, ...]
    direction: tuple[float, ...]


_LOCALE = threading.RLock()


class ItkScan(NamedTuple):
    """A scan's voxels [x, y, z] and its grid, also in ITK's terms, in which a mask is written on it."""

    voxels: NDArray[Any]
    grid: Grid
    place: Place
    files: tuple[Path, ...] = ()
    """Of a DICOM series, in the order of z."""


def is_series(folder: Path) -> bool:
    """Whether a folder has DICOM files directly in it."""
    return folder.is_dir() and any(is_dicom(path) for path in sorted(folder.iterdir())[:50])


def is_dicom(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        file.seek(DICOM_AT)
        return file.read(len(DICOM)) == DICOM


def read(path: Path) -> ItkScan:
    """ValueError, in one line, for what is no scan of one channel in three dimensions."""
    try:
        import SimpleITK as sitk
    except ModuleNotFoundError:
        raise ValueError(f"{path}: NRRD, MHA and DICOM need SimpleITK: pip install 'rwkvctl[scans]'") from None
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    if path.is_file():
        refuse_detached(path)
    files: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()
    try:
        with same_locale():
            if path.is_dir():
                files = series_files(path)
                if len(files) == 1 and dicom_frames.is_enhanced(files[0]):
                    return read_frames(files[0])
                image, notes = read_series(path, files)
            else:
                image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        reason = " ".join(str(error).split()).rpartition("!")[2] or str(error)
        raise ValueError(f"{path}: cannot be read ({reason.strip()[:100]})") from None
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        channels = image.GetNumberOfComponentsPerPixel()
        size = " x ".join(map(str, image.GetSize()))
        raise ValueError(f"{path}: is {size} with {channels} channels, where a scan has three axes and one channel")
    voxels = sitk.GetArrayFromImage(image).transpose(2, 1, 0)
    place = Place(image.GetOrigin(), image.GetSpacing(), image.GetDirection())
    return ItkScan(voxels, Grid(affine_of(image), voxels.shape, notes=notes), place, files)


@contextmanager
def same_locale() -> Iterator[None]:
    """ITK's DICOM library leaves a process in the locale C, where Python reads text as ASCII. One thread at a time:
    another one would take the C of the first for what was there before."""
    with _LOCALE:
        before = locale.setlocale(locale.LC_ALL)
        try:
            yield
        finally:
            locale.setlocale(locale.LC_ALL, before)


def refuse_detached(path: Path) -> None:
    """ValueError for a header without its voxels: it may name any file of this machine."""
    with path.open("rb") as file:
        head = file.read(LONGEST_HEADER).partition(b"\n\n" if path.suffix.lower() == ".nrrd" else b"\0")[0]
    if re.search(DETACHED[path.suffix.lower()], head):
        raise ValueError(f"{path}: keeps its voxels in another file; save it as one file")


def affine_of(image: Any) -> NDArray[np.float64]:
    """From voxel [x, y, z] to mm in RAS."""
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def series_files(folder: Path) -> tuple[Path, ...]:
    """The slices of the one series in a folder, in the order in which they lie in the body; ValueError for several."""
    import SimpleITK as sitk

    series = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
    if len(series) != 1:
        raise ValueError(f"{folder}: has {len(series)} DICOM series, where one was expected; put each into a folder")
    return tuple(map(Path, sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), series[0])))


def read_series(folder: Path, files: tuple[Path, ...]) -> tuple[Any, tuple[str, ...]]:
    """A series, its values rescaled (HU), and what is to be told of it; ValueError where slices are missing."""
    import SimpleITK as sitk

    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([str(file) for file in files])
    notes: tuple[str, ...] = ()
    if len(files) > 1:
        normal, origins = origins_of(files)
        check_even(folder, origins @ normal)
        notes = tilt(normal, origins)
    return reader.Execute(), notes


def series_scan(folder: Path, files: tuple[Path, ...]) -> ItkScan:
    """As `read`, of files that are known to be one series, in the order in which they lie in the body."""
    if len(files) == 1 and dicom_frames.is_enhanced(files[0]):
        return read_frames(files[0])
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    with same_locale():
        image, notes = read_series(folder, files)
        voxels = sitk.GetArrayFromImage(image).transpose(2, 1, 0)
    place = Place(image.GetOrigin(), image.GetSpacing(), image.GetDirection())
    return ItkScan(voxels, Grid(affine_of(image), voxels.shape, notes=notes), place, files)


def series_grid(folder: Path, files: tuple[Path, ...]) -> Grid:
    """That of `series_scan`, from the headers of single slices."""
    if len(files) == 1:
        return series_scan(folder, files).grid
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    with same_locale():
        normal, origins = origins_of(files)
        first = sitk.ImageFileReader()
        first.SetFileName(str(files[0]))
        first.ReadImageInformation()
        check_even(folder, origins @ normal)
        affine = affine_of(first)
    step = float(np.median(np.abs(np.diff(origins @ normal))))
    affine[:3, 2] *= step / np.linalg.norm(affine[:3, 2])
    return Grid(affine, (*(int(n) for n in first.GetSize()[:2]), len(files)), notes=tilt(normal, origins))


def read_frames(file: Path) -> ItkScan:
    """A volume in one DICOM file."""
    voxels, lps = dicom_frames.read(file)
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    direction = (lps[:3, :3] / spacing).ravel()
    place = Place(*(tuple(map(float, each)) for each in (lps[:3, 3], spacing, direction)))
    return ItkScan(voxels, Grid(np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps, voxels.shape), place, (file,))


def origins_of(files: tuple[Path, ...]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The normal (3) of a series' slices, and the origin (n, 3) of each, in mm of LPS."""
    import SimpleITK as sitk

    reader, origins = sitk.ImageFileReader(), []
    for file in files:
        reader.SetFileName(str(file))
        reader.ReadImageInformation()
        origins.append(reader.GetOrigin())
    return np.array(reader.GetDirection()).reshape(3, 3)[:, 2], np.array(origins)


def tilt(normal: NDArray[np.float64], origins: NDArray[np.float64]) -> tuple[str, ...]:
    """A note where slices are shifted against one another in their plane, by a gantry that was tilted."""
    whole = origins[-1] - origins[0]
    shift = float(np.linalg.norm(whole - (whole @ normal) * normal))
    if shift < TILTED_MM:
        return ()
    return (
        f"the gantry was tilted: the last slice lies {shift:.1f} mm aside of the first, where a grid has it straight; "
        "--format dicom-seg keeps the place of each",
    )


def check_even(folder: Path, places: NDArray[np.float64]) -> None:
    """ValueError where slices do not follow one another at one distance: some are missing, or there twice."""
    gaps = np.abs(np.diff(places))
    usual = float(np.median(gaps))
    odd = np.flatnonzero(np.abs(gaps - usual) > UNEVEN * usual)
    if len(odd) or usual == 0:
        worst = gaps[odd[0]] if len(odd) else 0.0
        raise ValueError(
            f"{folder}: slices are missing or uneven: {worst:.3g} mm apart where others are {usual:.3g} mm"
        )


def write(place: Place, target: Path, mask: NDArray[np.uint8]) -> None:
    """Write class ids [x, y, z] where a scan lies, atomically, in the form of the target's ending."""
    import SimpleITK as sitk

    made = sitk.GetImageFromArray(np.ascontiguousarray(mask.transpose(2, 1, 0)))
    made.SetOrigin(place.origin)
    made.SetSpacing(place.spacing)
    made.SetDirection(place.direction)
    with atomic_path(target) as temporary, same_locale():
        sitk.WriteImage(made, str(temporary), useCompression=True)
