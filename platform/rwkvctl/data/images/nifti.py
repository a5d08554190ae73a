"""NIfTI files, `.nii` or `.nii.gz`, from any source: header alone, or the voxels with the grid on which they lie."""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass, replace
from typing import Any, BinaryIO, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from rwkvctl.base.errors import BadFile
from rwkvctl.base.unpacking import gunzip, refuse_lfs_pointer
from rwkvctl.data.images import intensity
from rwkvctl.data.images.grid import Grid

HEADER_BYTES = 540
"""Enough for the header of NIfTI-1 (348) and NIfTI-2 (540). What extensions follow it is not needed."""
_MM = {1: 1000.0, 2: 1.0, 3: 1e-3}
"""Units of length in a header (metre, millimetre, micrometre), in mm; without one, mm are meant."""
LEAST_MM, MOST_MM = 1e-4, 100.0
"""Spacings outside are no scanner's."""
SAME_SPACING = 0.01
"""Relative; headers are written with a few digits."""
SAME_DIRECTION = 0.05
"""Of direction cosines: about three degrees."""
SHEAR = 0.01
"""Cosine between two axes from which on a grid is called sheared: half a degree."""


class ScanFile(Protocol):
    """A file on disk or in an archive; `str` of it is how messages name it."""

    @property
    def name(self) -> str: ...

    def open(self) -> BinaryIO: ...

    def read(self) -> bytes: ...


class Nifti(NamedTuple):
    """Voxels indexed [x, y, z], their grid, and the header without extensions; `data` are the file's bytes."""

    voxels: NDArray[Any]
    grid: Grid
    header: Any
    data: bytes


@dataclass(frozen=True)
class Stored:
    """Voxels [x, y, z], or [x, y, z, t] of several volumes on one grid, as the file holds them, a view of its content;
    `rescaled` makes the scanner's numbers of any."""

    voxels: NDArray[Any]
    grid: Grid
    header: Any
    slope: float | None
    inter: float | None

    def rescaled(self, voxels: NDArray[Any]) -> NDArray[Any]:
        import nibabel.volumeutils

        return np.asarray(nibabel.volumeutils.apply_read_scaling(voxels, self.slope, self.inter))

    @property
    def volumes(self) -> list[Stored]:
        """Each volume for itself."""
        if self.voxels.ndim == 3:
            return [self]
        return [replace(self, voxels=self.voxels[..., time]) for time in range(self.voxels.shape[3])]

    def window(self, low: intensity.Bound, high: intensity.Bound) -> tuple[float, float]:
        """As `intensity.window` of the scanner's numbers, which are in the order of the stored ones."""
        if self.slope is not None and self.slope < 0:
            return intensity.window(self.rescaled(self.voxels), low, high)
        own = intensity.window(self.voxels, low, high)
        return self._bound(low, own[0]), self._bound(high, own[1])

    def _bound(self, bound: intensity.Bound, found: float) -> float:
        """A statistic is one of the stored numbers; a number that was given is the scanner's already."""
        return float(self.rescaled(np.array([found], self.voxels.dtype))[0]) if isinstance(bound, str) else found


def read_grid(file: ScanFile, channels: int = 1) -> Grid:
    """The grid from the header alone; BadFile when the file is no NIfTI of three axes, or of so many channels along a
    fourth."""
    try:
        with file.open() as stream:
            head = stream.read(1 << 16)
        _refuse_no_scan(file, head)
        if head.startswith(b"\x1f\x8b"):
            head = zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(head, HEADER_BYTES)
    except (OSError, zlib.error) as error:
        raise BadFile(f"{file}: cannot be read ({error})") from error
    header = _header(file, head)
    if channels > 1 and (there := _times(header)) != channels:
        raise BadFile(f"{file}: has {there} channels along its fourth axis, {channels} were expected")
    return _grid(file, header, channels)


def read(file: ScanFile) -> Nifti:
    """The whole file; BadFile when it is damaged or not 3-D."""
    data = file.read()
    stored = _stored(file, data)
    return Nifti(stored.rescaled(stored.voxels), stored.grid, stored.header, data)


def read_stored(file: ScanFile, *, several: bool = False) -> Stored:
    """The whole file, its voxels as they are stored; BadFile when it is damaged or not 3-D, with `several` not 4-D
    either."""
    return _stored(file, file.read(), several)


def _stored(file: ScanFile, data: bytes, several: bool = False) -> Stored:
    _refuse_no_scan(file, data)
    content = gunzip(data, file) if data.startswith(b"\x1f\x8b") else data
    header = _header(file, content)
    times = _times(header) if several else 1
    grid = _grid(file, header, times)
    shape = grid.shape if times == 1 else (*grid.shape, times)
    voxels = _voxels(file, header, content).reshape(shape, order="F")
    return Stored(voxels, grid, header, *_scaling(file, header))


SLAB = 16 << 20
"""Bytes that are written at once."""
GZIP_LEVEL = 4
"""Of a mask: 270 MB/s; at 9 it is 18 MB/s for files a tenth smaller."""


def write_like(file: BinaryIO, header: Any, mask: NDArray[np.uint8], *, gzipped: bool) -> None:
    """Write a NIfTI file of class ids [x, y, z], or [x, y, z, t], with a scan's header but for the type of the voxels,
    their scaling and their intent."""
    header = header.copy()
    header["cal_min"] = header["cal_max"] = 0
    header.set_intent("label")
    write(file, header, mask, gzipped=gzipped)


def header_of(affine: NDArray[np.float64], shape: tuple[int, ...]) -> Any:
    """The header of a new file [x, y, z] on the grid of `affine` (4, 4), in mm."""
    import nibabel

    header = nibabel.Nifti1Header()
    header.set_data_shape(shape)
    header.set_xyzt_units("mm")
    header.set_qform(affine, 1)
    header.set_sform(affine, 1)
    return header


def write(file: BinaryIO, header: Any, voxels: NDArray[Any], *, gzipped: bool) -> None:
    """Write a NIfTI file of `voxels` [x, y, z], or [x, y, z, t], unscaled, with this header but for their type.
    `voxels` may be a view with any strides; a slab of it is copied at a time."""
    if gzipped:
        with gzip.GzipFile("", "wb", GZIP_LEVEL, file, mtime=0) as packed:
            write(packed, header, voxels, gzipped=False)  # type: ignore[arg-type]
        return
    header = header.copy()
    header.set_data_dtype(voxels.dtype)
    header.set_slope_inter(1, 0)
    header["magic"] = header.single_magic
    header["vox_offset"] = header.single_vox_offset
    file.write(header.binaryblock + b"\0\0\0\0")  # no extensions follow
    slices = max(1, SLAB // max(1, voxels.shape[0] * voxels.shape[1] * voxels.itemsize))
    for volume in np.moveaxis(voxels, -1, 0) if voxels.ndim == 4 else [voxels]:
        for start in range(0, voxels.shape[2], slices):
            file.write(volume[:, :, start : start + slices].tobytes(order="F"))


# The header ----------------------------------------------------------------------------------------------------------


def _refuse_no_scan(file: ScanFile, data: bytes) -> None:
    """BadFile for what stands where a scan was meant to be."""
    if not data:
        raise BadFile(f"{file}: is empty; replace it")
    refuse_lfs_pointer(file, data)


def _header(file: ScanFile, head: bytes) -> Any:
    """The header proper; BadFile where it is none of a NIfTI of real numbers."""
    import nibabel

    if head[344:348] in (b"n+1\0", b"ni1\0"):
        made, size = nibabel.Nifti1Header, 348
    elif head[4:8] == b"n+2\0":
        made, size = nibabel.Nifti2Header, 540
    else:
        raise BadFile(f"{file}: not a NIfTI file; replace it")
    try:
        header = made(head[:size], check=False)
        dtype = header.get_data_dtype()
    except (ValueError, KeyError, nibabel.wrapstruct.WrapStructError, nibabel.spatialimages.HeaderDataError) as error:
        raise BadFile(f"{file}: its NIfTI header is damaged ({str(error).splitlines()[0][:80]}); replace it") from error
    if dtype.fields or dtype.subdtype:
        raise BadFile(f"{file}: its voxels are colours (RGB); a scan has one number a voxel, convert it to grey values")
    if dtype.kind not in "iuf":
        raise BadFile(f"{file}: its voxels are of type {dtype}; a scan has one real number a voxel")
    return header


def _voxels(file: ScanFile, header: Any, content: bytes) -> NDArray[Any]:
    """All voxels in the file's order, a view of its content. Read without nibabel's image classes, which parse
    extensions that a scan does not need and whose errors they are."""
    dtype, count = header.get_data_dtype(), int(np.prod(header.get_data_shape()))
    offset = max(int(header.get_data_offset()), int(header["sizeof_hdr"]))
    if len(content) < offset + count * dtype.itemsize:
        raise BadFile(
            f"{file}: not a whole NIfTI file ({len(content)} of {offset + count * dtype.itemsize} bytes); replace it"
        )
    return np.frombuffer(content, dtype, count, offset)


def _scaling(file: ScanFile, header: Any) -> tuple[float | None, float | None]:
    """Slope and intercept from stored numbers to the scanner's; None where there are none."""
    import nibabel

    try:
        slope, inter = header.get_slope_inter()
    except (ValueError, nibabel.spatialimages.HeaderDataError) as error:
        raise BadFile(f"{file}: the scaling in its header is not a number ({error}); replace it") from error
    return slope, inter


def _times(header: Any) -> int:
    """How many volumes lie one after the other along the fourth axis."""
    shape = [int(n) for n in header.get_data_shape()]
    while len(shape) > 4 and shape[-1] == 1:
        shape.pop()
    return max(1, shape[3]) if len(shape) == 4 else 1


def _grid(file: ScanFile, header: Any, times: int = 1) -> Grid:
    full = tuple(int(n) for n in header.get_data_shape())
    shape = full
    while len(shape) > 3 and (shape[-1] == 1 or (len(shape) == 4 and times > 1)):
        shape = shape[:-1]
    if len(shape) != 3 or min(shape) < 1:
        several = ", it holds several volumes: save each as a file of its own" if len(shape) > 3 else ""
        raise BadFile(f"{file}: has shape {full}; a volume has three axes{several}")
    affine, oriented, notes = _affine(file, header)
    unit = _MM.get(int(header["xyzt_units"]) & 7, 1.0)
    affine = np.diag([unit, unit, unit, 1.0]) @ affine
    steps = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    if abs(np.linalg.det(steps)) < 1e-2:
        raise BadFile(f"{file}: two of its axes point the same way (affine {_text(affine)}); fix its header")
    if np.abs(steps.T @ steps - np.eye(3)).max() > SHEAR:
        notes = [*notes, "the axes are not at right angles, so that distances in mm are approximate (sheared affine)"]
    return Grid(affine, shape, oriented, tuple(notes))


def _affine(file: ScanFile, header: Any) -> tuple[NDArray[np.float64], bool, list[str]]:
    """(affine in the header's own unit, whether it tells the axes, notes). The header tells the grid up to three
    times: sform, qform and pixdim, which must agree."""
    pixdim = np.abs(np.asarray(header["pixdim"][1:4], np.float64))
    sform, qform = _sform(header), _qform(header)
    notes: list[str] = []
    if sform is None and qform is None:
        if not _plausible(header, pixdim):
            raise BadFile(f"{file}: its header has no plausible spacing ({_mm(pixdim)}); fix its header")
        affine = np.diag([-pixdim[0], *pixdim[1:], 1.0])  # as nibabel has it
        return affine, False, ["the header has no orientation; the axes are taken to lead left, anterior, superior"]
    if sform is None:
        if not _plausible(header, pixdim):
            raise BadFile(f"{file}: its header has no plausible spacing ({_mm(pixdim)}); fix its header")
        return qform, True, notes  # type: ignore[return-value]
    scales = np.linalg.norm(sform[:3, :3], axis=0)
    if qform is not None and np.abs(sform[:3, :3] / scales - qform[:3, :3] / _norms(qform)).max() > SAME_DIRECTION:
        notes.append("sform and qform of the header point in different directions; sform is used")
    if np.allclose(scales, pixdim, rtol=SAME_SPACING):
        if not _plausible(header, scales):
            raise BadFile(f"{file}: its header has no plausible spacing ({_mm(scales)}); fix its header")
        return sform, True, notes
    both = f"sform {_mm(scales)}, pixdim {_mm(pixdim)}"
    unit = np.allclose(scales, 1, atol=1e-3)
    if _plausible(header, pixdim) and (unit or not _plausible(header, scales)):
        affine = sform.copy()
        affine[:3, :3] *= pixdim / scales
        return (
            affine,
            True,
            [*notes, f"sform and pixdim of the header disagree on the spacing; pixdim is used ({both})"],
        )
    if not _plausible(header, scales):
        raise BadFile(f"{file}: its header has no plausible spacing ({both}); fix its header")
    return sform, True, [*notes, f"sform and pixdim of the header disagree on the spacing; sform is used ({both})"]


def _sform(header: Any) -> NDArray[np.float64] | None:
    """The sform where there is one that is usable."""
    affine = np.asarray(header.get_sform(), np.float64)
    usable = int(header["sform_code"]) > 0 and np.isfinite(affine).all() and _norms(affine).min() > 0
    return affine if usable else None


def _qform(header: Any) -> NDArray[np.float64] | None:
    import nibabel

    if int(header["qform_code"]) <= 0:
        return None
    try:
        affine = np.asarray(header.get_qform(), np.float64)
    except (ValueError, nibabel.spatialimages.HeaderDataError):
        return None
    return affine if np.isfinite(affine).all() and _norms(affine).min() > 0 else None


def _norms(affine: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.linalg.norm(affine[:3, :3], axis=0))


def _plausible(header: Any, spacing: NDArray[np.float64]) -> bool:
    mm = spacing * _MM.get(int(header["xyzt_units"]) & 7, 1.0)
    return bool(np.isfinite(mm).all() and mm.min() >= LEAST_MM and mm.max() <= MOST_MM)


def _mm(spacing: NDArray[np.float64]) -> str:
    return " x ".join(f"{step:.4g}" for step in spacing)


def _text(affine: NDArray[np.float64]) -> str:
    return str(np.round(affine[:3, :3], 3).tolist())
