"""The mask of a scan, on the scan's own grid."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rwkvctl.base.errors import UserError
from rwkvctl.base.files import atomic_open
from rwkvctl.data.images import grid, intensity, itk
from rwkvctl.models.bundle import BundleInfo
from rwkvctl.models.predict_form import Form
from rwkvctl.models.segmenting import MakesMasks

NIFTI = (".nii.gz", ".nii")
Ids = NDArray[np.uint8]


class OpenScan(NamedTuple):
    """A scan as the model takes it, and what is kept of it for its mask."""

    volumes: list[intensity.ScaledSlices]
    """Each (D, H, W), the axes turned to the model's; several of a 4-D file."""
    geometry: dict[str, Any]
    """The way back to the file's axes, see `grid.geometry`."""
    voxel_ml: float | None
    """None where voxels of several volumes would be counted."""
    note: str
    """What was doubtful in the scan's header and how it was read; "" where nothing was."""
    write: Callable[[Path, Ids], None]
    """Write ids [x, y, z], or [x, y, z, t], on the scan's grid, atomically, in the form of a path's ending."""

    def joined(self, volumes: Sequence[NDArray[Any]], made: Callable[..., NDArray[Any]]) -> NDArray[Any]:
        """What was made of each of the volumes in the file's axes, [x, y, z] or [x, y, z, t], after a class where there
        is one; `made` gives the array that several are put into."""
        if len(volumes) == 1:
            return self.in_file_axes(volumes[0])
        first = self.in_file_axes(volumes[0])
        every = made((*first.shape, len(volumes)))
        for time, volume in enumerate(volumes):
            every[..., time] = self.in_file_axes(volume)
        return every

    def in_file_axes(self, volume: NDArray[Any]) -> NDArray[Any]:
        """(D, H, W), or (classes, D, H, W), as a view [x, y, z] or [class, x, y, z]."""
        if volume.ndim == 3:
            return grid.turned_back(volume, self.geometry)
        return np.moveaxis(grid.turned_back(np.moveaxis(volume, 0, -1), self.geometry), -1, 0)

    def in_model_axes(self, ids: Ids) -> Ids:
        """[x, y, z] as a view (D, H, W)."""
        return grid.turned_again(ids, self.geometry)


def is_scan(path: Path) -> bool:
    """Whether a path is a scan by its ending, or a folder with DICOM slices."""
    return path.name.lower().endswith((*NIFTI, *itk.FILES)) or itk.is_series(path)


def mask_name(path: Path, form: Form = Form()) -> str:
    """The name of a scan's mask: its own; of a DICOM series, that of its folder with the form's ending."""
    if not path.is_dir():
        return path.name
    return f"{path.name}.dcm" if form.is_dicom else f"{path.name}.nii.gz"


def open_scan(path: Path, info: BundleInfo, form: Form = Form()) -> OpenScan:
    """Bring a scan to what the model was trained on: its axes are turned to the model's (`info.orientation`), as its
    training data were, whatever way the file is stored, and its numbers go through the model's rule.

    The scan is held as it is stored. The mask's file has the scan's header but for the type of its voxels; that of a
    DICOM series is a NIfTI file on the series' grid, or a DICOM segmentation.
    """
    if info.image_kind != "float":
        raise UserError(f"input {path}: this model takes colour images (JPEG, PNG, TIFF, BMP), not scans")
    if info.intensity is None or info.orientation is None:
        raise UserError(f"input {path}: the model does not say how scans were prepared for it; give .npy in [0, 1]")
    if not grid.is_orientation(info.orientation):
        raise UserError(
            f"input {path}: the model's orientation {info.orientation!r} is unknown; export the model again"
        )
    with one_line(path):
        if path.name.lower().endswith(NIFTI):
            return _open_nifti(path, info.orientation, info.intensity["clip"])
        write_dicom = partial(form.write, info.classes) if form.is_dicom else None
        return _open_itk(path, info.orientation, info.intensity["clip"], write_dicom)


@contextmanager
def one_line(path: Path) -> Iterator[None]:
    """Whatever is wrong with an input becomes one line with the way on. Some voxels of a scan are looked at only when
    their slice is segmented."""
    try:
        yield
    except UserError as error:
        line = str(error)
        raise UserError(line if line.startswith("input ") else f"input {path}: {line}") from None
    except ValueError as error:
        line = str(error).removeprefix(f"{path}: ")
        line = line.removesuffix("; replace it").removesuffix("; download it again")
        remedy = "" if "; " in line or "pip install" in line else "; give a whole scan"
        raise UserError(f"input {path}: {line}{remedy}") from None


def _open_nifti(path: Path, orientation: str, clip: tuple[intensity.Bound, intensity.Bound]) -> OpenScan:
    from rwkvctl.data.convert.sources import on_disk
    from rwkvctl.data.images import nifti

    scan = nifti.read_stored(on_disk(path), several=True)

    def write(target: Path, ids: Ids, header: Any = scan.header) -> None:  # holds the header alone
        with atomic_open(target) as file:
            nifti.write_like(file, header, ids, gzipped=target.name.lower().endswith(".gz"))

    every = [(volume.voxels, volume.window(*clip)) for volume in scan.volumes]
    return _opened(every, scan.grid, orientation, write, scan.rescaled)


def _open_itk(
    path: Path,
    orientation: str,
    clip: tuple[intensity.Bound, intensity.Bound],
    write_dicom: Callable[[tuple[Path, ...], Path, Ids], None] | None,
) -> OpenScan:
    scan = itk.read(path)
    window = intensity.window(scan.voxels, *clip)
    write = partial(write_dicom, scan.files) if write_dicom else partial(itk.write, scan.place)
    return _opened([(scan.voxels, window)], scan.grid, orientation, write, np.asarray)


def _opened(
    volumes: Sequence[tuple[NDArray[Any], tuple[float, float]]],
    own: grid.Grid,
    orientation: str,
    write: Callable[[Path, Ids], None],
    rescaled: Callable[[NDArray[Any]], NDArray[Any]],
) -> OpenScan:
    layout = grid.layout(own, orientation)
    several = [f"{len(volumes)} volumes, each segmented on its own"] if len(volumes) > 1 else []
    return OpenScan(
        [intensity.ScaledSlices(grid.turned(voxels, own, layout), *window, rescaled) for voxels, window in volumes],
        grid.geometry(own, layout),
        None if several else float(np.prod(own.spacing)) / 1000,
        "; ".join([*several, *own.notes]),
        write,
    )


def segment_scan(segmenter: MakesMasks, path: Path, target: Path) -> None:
    """Read a scan, segment it and write its mask."""
    scan = open_scan(path, segmenter.info)
    with one_line(path):
        masks = [segmenter.segment(volume).mask for volume in scan.volumes]
    scan.write(target, scan.joined(masks, partial(np.empty, dtype=np.uint8)))
