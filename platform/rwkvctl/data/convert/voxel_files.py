"""Files that hold a volume, whatever their kind: their grid from the header, and their voxels."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from rwkvctl.base.errors import BadFile
from rwkvctl.base.unpacking import refuse_lfs_pointer
from rwkvctl.data.convert import array_volumes, tiff_volumes
from rwkvctl.data.convert.raw_files import RawFile
from rwkvctl.data.images import arrays, itk, itk_files, nifti
from rwkvctl.data.images.grid import Grid
from rwkvctl.data.images.nifti import Stored

NIFTI = (".nii", ".nii.gz")
ENDINGS = (*NIFTI, *itk_files.ENDINGS, *arrays.ENDINGS)


@dataclass(frozen=True, slots=True)
class VoxelFile:
    """A file with the voxels of one image or mask.

    voxels: the file that holds them, where `file` is their header; array, axes: of a file of arrays which one, and what
    its axes are (`zyx`, or `yx` of a slice, and `c` for channels), those of one element left out; slices: all files of
    a volume of slices; channel: which of several along the fourth axis, or along `c`; dicom: a series, or the kind of a
    mask on one, of which `segments` are (number, class id).
    """

    file: RawFile
    voxels: RawFile | None = None
    array: str = ""
    axes: str = "zyx"
    slices: tuple[RawFile, ...] = ()
    dicom: Literal["", "series", "seg", "rtstruct"] = ""
    segments: tuple[tuple[int, int], ...] = ()
    channel: int = 0
    channels: int = 1

    def __str__(self) -> str:
        return str(self.file)

    @property
    def name(self) -> str:
        return self.file.name

    @property
    def files(self) -> tuple[RawFile, ...]:
        if self.slices:
            return self.slices
        return (self.file, self.voxels) if self.voxels else (self.file,)


def is_volume(file: RawFile) -> bool:
    """By its name, and of a TIFF by its pages."""
    name = file.name.lower()
    return name.endswith(ENDINGS) or (name.endswith(tiff_volumes.ENDINGS) and tiff_volumes.is_stack(file))


def stem(file: RawFile) -> str:
    """Its name without the ending, of which `.nii.gz` is one."""
    return file.name[: -len(".nii.gz")] if file.name.lower().endswith(".nii.gz") else file.stem


class Beside:
    """Finds the file that a header names, among those of a source."""

    def __init__(self, files: Iterable[RawFile]):
        self._by_path: Mapping[str, RawFile] = {file.path: file for file in files}

    def of(self, file: RawFile) -> VoxelFile:
        """BadFile where the header's voxels are not in the source."""
        if not file.name.lower().endswith(itk_files.ENDINGS):
            return VoxelFile(file)
        name = itk_files.detached(file)
        if name is None:
            return VoxelFile(file)
        voxels = self._by_path.get(f"{file.parent}/{name}".lstrip("/"))
        if voxels is None:
            raise BadFile(f"{file}: keeps its voxels in {name}, which is not beside it; add it")
        return VoxelFile(file, voxels)


def read_grid(own: VoxelFile) -> Grid:
    """From the header alone; BadFile for what is no volume of one channel."""
    if own.dicom:
        return _of_series(own, itk.series_grid)
    if own.name.lower().endswith(itk_files.ENDINGS):
        return itk_files.read_grid(own.file)
    if own.name.lower().endswith(arrays.ENDINGS):
        return array_volumes.read_grid(own.slices or (own.file,), own.array, own.axes)
    if own.name.lower().endswith(tiff_volumes.ENDINGS):
        return tiff_volumes.read_grid(own.file)
    return nifti.read_grid(own.file, own.channels)


def read(own: VoxelFile) -> Stored:
    """The voxels [x, y, z] as they are stored; BadFile for what is damaged, or no volume of one channel."""
    if own.dicom:
        scan = _of_series(own, itk.series_scan)
        return Stored(scan.voxels, scan.grid, None, None, None)
    if own.name.lower().endswith(itk_files.ENDINGS):
        return itk_files.read(own.file, own.voxels)
    if own.name.lower().endswith(arrays.ENDINGS):
        return array_volumes.read(own.slices or (own.file,), own.array, own.axes, own.channel)
    if own.name.lower().endswith(tiff_volumes.ENDINGS):
        return tiff_volumes.read(own.file)
    if own.channels > 1:
        return nifti.read_stored(own.file, several=True).volumes[own.channel]
    return nifti.read_stored(own.file)


T = TypeVar("T")


def _of_series(own: VoxelFile, read: Callable[[Path, tuple[Path, ...]], T]) -> T:
    files = tuple(Path(file.data) for file in own.files)
    try:
        return read(Path(str(own.file)).parent, files)
    except (ValueError, RuntimeError) as error:
        told = " ".join(str(error).split())
        raise BadFile(
            told if isinstance(error, ValueError) else f"{own}: cannot be read as a series; copy it again"
        ) from error


def digests(own: VoxelFile) -> dict[RawFile, str]:
    """SHA-256 of each of its files."""
    found = {}
    for file in own.files:
        with file.open() as stream:
            refuse_lfs_pointer(file, stream.read(64))
            stream.seek(0)
            found[file] = hashlib.file_digest(stream, "sha256").hexdigest()  # type: ignore[arg-type]
    return found
