"""NIfTI files, `.nii` or `.nii.gz`, from any source: header alone, or the voxels with the grid on which they lie."""

from __future__ import annotations

import gzip
import io
import zlib
from typing import Any, BinaryIO, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from rwkvctl.base.errors import BadFile
from rwkvctl.base.unpacking import gunzip

HEADER_BYTES = 540
"""Enough for the header of NIfTI-1 (348) and NIfTI-2 (540)."""

ORIENTATIONS = {"itk": "z, y, x", "emcad": "z, x, y", "transunet": "z, x, -y"}
"""How a stored volume's axes run in the file's: `itk` is what SimpleITK gives, the others are two public readings of
Synapse. A model that was trained in one of them does not work in another."""


class ScanFile(Protocol):
    """A file on disk or in an archive; `str` of it is how messages name it."""

    @property
    def name(self) -> str: ...

    def open(self) -> BinaryIO: ...

    def read(self) -> bytes: ...


class Grid(NamedTuple):
    """The affine (4, 4) of a file, from voxel [x, y, z] to mm (NIfTI's RAS), and its shape."""

    affine: NDArray[np.float64]
    shape: tuple[int, ...]

    @property
    def spacing(self) -> tuple[float, ...]:
        """mm along x, y, z."""
        return tuple(float(step) for step in np.linalg.norm(self.affine[:3, :3], axis=0))


class Nifti(NamedTuple):
    """Voxels indexed [x, y, z] and their grid; `data` are the file's bytes."""

    voxels: NDArray[Any]
    grid: Grid
    data: bytes


def read_grid(file: ScanFile) -> Grid:
    """The grid from the header alone; BadFile when the file is no 3-D NIfTI."""
    try:
        with file.open() as stream:
            head = stream.read(1 << 16)
        if head.startswith(b"\x1f\x8b"):
            head = zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(head, HEADER_BYTES)
    except (OSError, zlib.error) as error:
        raise BadFile(f"{file}: cannot be read ({error})") from error
    return _grid(file, _image_class(file, head).header_class.from_fileobj(io.BytesIO(head), check=False))


def read(file: ScanFile) -> Nifti:
    """The whole file; BadFile when it is damaged or not 3-D."""
    import nibabel

    data = file.read()
    content = gunzip(data, file) if data.startswith(b"\x1f\x8b") else data
    try:
        image = _image_class(file, content).from_bytes(content)
        voxels = np.asanyarray(image.dataobj)
    except (OSError, ValueError, nibabel.filebasedimages.ImageFileError, gzip.BadGzipFile) as error:
        raise BadFile(f"{file}: not a whole NIfTI file ({str(error).splitlines()[0]}); replace it") from error
    return Nifti(voxels, _grid(file, image.header), data)


def _image_class(file: ScanFile, head: bytes) -> Any:
    import nibabel

    if head[344:348] in (b"n+1\0", b"ni1\0"):
        return nibabel.Nifti1Image
    if head[4:8] == b"n+2\0":
        return nibabel.Nifti2Image
    raise BadFile(f"{file}: not a NIfTI file; replace it")


def _grid(file: ScanFile, header: Any) -> Grid:
    shape = tuple(int(n) for n in header.get_data_shape())
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3 or min(shape) < 1:
        raise BadFile(f"{file}: has shape {shape}; a volume has three axes")
    affine = np.asarray(header.get_best_affine(), np.float64)
    if not np.isfinite(affine).all() or min(np.linalg.norm(affine[:3, :3], axis=0)) < 1e-6:
        raise BadFile(f"{file}: its header has no spacing; replace it by a copy that has")
    return Grid(affine, shape)


def check_same_grid(file: ScanFile, own: Grid, other_file: ScanFile, other: Grid) -> None:
    """BadFile when a mask does not lie on its image's grid. Origins are not compared: many masks have none."""
    if own.shape != other.shape:
        raise BadFile(f"{file}: has shape {own.shape}, {other_file.name} has {other.shape}; give them one grid")
    if not np.allclose(own.spacing, other.spacing, atol=1e-3):
        spacings = ", ".join(" x ".join(f"{step:.4g}" for step in grid.spacing) for grid in (own, other))
        raise BadFile(f"{file}: its spacing is not that of {other_file.name} ({spacings} mm); give them one grid")


def turned(voxels: NDArray[Any], orientation: str) -> NDArray[Any]:
    """[x, y, z] of a file to the stored (D, H, W)."""
    if orientation == "itk":
        return voxels.transpose(2, 1, 0)
    turned = voxels.transpose(2, 0, 1)
    return turned[:, :, ::-1] if orientation == "transunet" else turned


def turned_back(volume: NDArray[Any], orientation: str) -> NDArray[Any]:
    """The inverse of `turned`: a stored (D, H, W) to [x, y, z], to be written as NIfTI with the sample's affine."""
    if orientation == "itk":
        return volume.transpose(2, 1, 0)
    volume = volume[:, :, ::-1] if orientation == "transunet" else volume
    return volume.transpose(1, 2, 0)


def geometry(grid: Grid, orientation: str) -> dict[str, Any]:
    """What a sample's json says of its grid.

    `spacing_mm` is in the order of the stored axes (z, row, column); `origin` (3) and `direction` (9, by rows) are
    NIfTI's: the affine of the file is direction * spacing along x, y, z, with origin as its last column.
    """
    x, y, z = grid.spacing
    direction = grid.affine[:3, :3] / np.array(grid.spacing)
    return {
        "spacing_mm": [z, y, x] if orientation == "itk" else [z, x, y],
        "origin": [float(value) for value in grid.affine[:3, 3]],
        "direction": [float(value) for value in direction.ravel()],
        "orientation": orientation,
    }


def affine_of(meta: dict[str, Any]) -> NDArray[np.float64]:
    """The affine (4, 4) of the file that a sample was made from, from its json."""
    z, first, second = meta["spacing_mm"]
    x, y = (second, first) if meta["orientation"] == "itk" else (first, second)
    affine = np.eye(4)
    affine[:3, :3] = np.array(meta["direction"]).reshape(3, 3) * np.array([x, y, z])
    affine[:3, 3] = meta["origin"]
    return affine
