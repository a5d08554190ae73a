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
from rwkvctl.data.images import grid, intensity, itk, normalise
from rwkvctl.data.images.normalise import NormalSlices
from rwkvctl.models import predict_channels
from rwkvctl.models.bundle import BundleInfo
from rwkvctl.models.predict_form import Form
from rwkvctl.models.segmenting import MakesMasks

NIFTI = (".nii.gz", ".nii")
Ids = NDArray[np.uint8]
WriteDicom = Callable[[tuple[Path, ...], Path, Ids], None]


class OpenScan(NamedTuple):
    """A scan as the model takes it, and what is kept of it for its mask."""

    volumes: Sequence[intensity.ScaledSlices | NormalSlices]
    """Each (D, H, W), or (D, H, W, C) for a model of several channels, the axes turned to the model's; several of a 4-D
    file."""
    geometry: dict[str, Any]
    """The way back to the file's axes, see `grid.geometry`."""
    voxel_ml: float | None
    """None where voxels of several volumes would be counted."""
    note: str
    """What was doubtful in the scan's header and how it was read; "" where nothing was."""
    write: Callable[[Path, Ids], None]
    """Write ids [x, y, z], or [x, y, z, t], on the scan's grid, atomically, in the form of a path's ending."""

    @property
    def spacing(self) -> tuple[float, float, float] | None:
        """mm along z, y, x of the volumes; None where nothing tells it."""
        found = self.geometry.get("spacing_mm")
        return None if found is None else (found[0], found[1], found[2])

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
    clip = normalise.only_range(info.intensity)
    with one_line(path):
        if clip is None or info.channels > 1:
            return _open_channels(path, info, form)
        if path.name.lower().endswith(NIFTI):
            return _open_nifti(path, info.orientation, clip)
        return _open_itk(path, info.orientation, clip, _write_dicom(info, form))


def _write_dicom(info: BundleInfo, form: Form) -> WriteDicom | None:
    return partial(form.write, info.classes) if form.is_dicom else None


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
    write = partial(_write_nifti, scan.header)
    every = [(volume.voxels, volume.window(*clip)) for volume in scan.volumes]
    return _opened(every, scan.grid, orientation, write, scan.rescaled)


def _write_nifti(header: Any, target: Path, ids: Ids) -> None:
    from rwkvctl.data.images import nifti

    with atomic_open(target) as file:
        nifti.write_like(file, header, ids, gzipped=target.name.lower().endswith(".gz"))


def _open_itk(
    path: Path,
    orientation: str,
    clip: tuple[intensity.Bound, intensity.Bound],
    write_dicom: WriteDicom | None,
) -> OpenScan:
    scan = itk.read(path)
    window = intensity.window(scan.voxels, *clip)
    write = partial(write_dicom, scan.files) if write_dicom else partial(itk.write, scan.place)
    return _opened([(scan.voxels, window)], scan.grid, orientation, write, np.asarray)


class _Channel(NamedTuple):
    """One channel [x, y, z], or [x, y, z, t] of a 4-D file, as it is stored, and how a mask is written beside it."""

    voxels: NDArray[Any]
    grid: grid.Grid
    rescaled: Callable[[NDArray[Any]], NDArray[Any]]
    write: Callable[[Path, Ids], None]


def _open_channels(path: Path, info: BundleInfo, form: Form) -> OpenScan:
    """A case by the rules of its channels, which are files on one grid, or the volumes of one 4-D file."""
    files, rules = predict_channels.files_of(path, info), normalise.rules_of(info.intensity)
    assert rules is not None
    assert info.orientation is not None
    first = _read_channel(files[0], info, form)
    layout, voxels, notes = grid.layout(first.grid, info.orientation), [first.voxels], list(first.grid.notes)
    rescaled = [first.rescaled]
    if len(files) == 1 and first.voxels.ndim == 4:
        voxels = list(np.moveaxis(first.voxels, -1, 0))
        rescaled *= len(voxels)
    for file in files[1:]:
        own = _read_channel(file, info, form)
        voxels.append(grid.aligned(file, own.grid, path, first.grid).on_image(own.voxels))
        rescaled.append(own.rescaled)
    several = info.channels == 1 and len(voxels) > 1
    if len(voxels) != info.channels and not several:
        raise UserError(
            f"input {path}: has {len(voxels)} channel{'s' if len(voxels) > 1 else ''}, and the model takes "
            f"{predict_channels.in_words(info)}; call its files CASE_0000, CASE_0001, ..."
        )
    turned = [grid.turned(each, first.grid, layout) for each in voxels]
    parts = [slice(n, n + 1) for n in range(len(turned))] if several else [slice(None)]
    volumes = [_normalised(rules, turned[part], rescaled[part]) for part in parts]
    if several:
        notes.insert(0, f"{len(volumes)} volumes, each segmented on its own")
    ml = None if several else float(np.prod(first.grid.spacing)) / 1000
    return OpenScan(volumes, grid.geometry(first.grid, layout), ml, "; ".join(notes), first.write)


def _normalised(
    rules: Sequence[normalise.Rule],
    channels: Sequence[NDArray[Any]],
    rescaled: Sequence[Callable[[NDArray[Any]], NDArray[Any]]],
) -> NormalSlices:
    values = [numbers(each) for numbers, each in zip(rescaled, channels, strict=True)]
    return NormalSlices(channels, normalise.settled(rules, values), rescaled)


def _read_channel(path: Path, info: BundleInfo, form: Form) -> _Channel:
    from rwkvctl.data.convert.sources import on_disk
    from rwkvctl.data.images import nifti

    if path.name.lower().endswith(NIFTI):
        stored = nifti.read_stored(on_disk(path), several=True)
        return _Channel(stored.voxels, stored.grid, stored.rescaled, partial(_write_nifti, stored.header))
    scan = itk.read(path)
    write_dicom = _write_dicom(info, form)
    write = partial(write_dicom, scan.files) if write_dicom else partial(itk.write, scan.place)
    return _Channel(scan.voxels, scan.grid, np.asarray, write)


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
        masks = [segmenter.segment(volume, spacing=scan.spacing).mask for volume in scan.volumes]
    scan.write(target, scan.joined(masks, partial(np.empty, dtype=np.uint8)))
