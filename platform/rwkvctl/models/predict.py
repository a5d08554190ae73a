"""Masks for image files: read, segment at native size, write."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rwkvctl.base.errors import JobFailedError, UserError
from rwkvctl.base.files import atomic_open, write_bytes
from rwkvctl.base.on_disk import array_on_disk
from rwkvctl.data.images import deep, normalise, tiff_stack
from rwkvctl.models import predict_channels
from rwkvctl.models.bundle import BundleInfo
from rwkvctl.models.predict_form import Form
from rwkvctl.models.predict_inputs import input_files, read_input
from rwkvctl.models.predict_npz import write_probabilities
from rwkvctl.models.predict_scans import OpenScan, is_scan, one_line, open_scan
from rwkvctl.models.predict_targets import checked_targets, preview_of, probabilities_of
from rwkvctl.models.segmenting import MakesMasks, Volume, not_seen
from rwkvctl.models.sureness import Sureness, together
from rwkvctl.pictures.overlays import preview_png
from rwkvctl.pictures.palette import palette

if TYPE_CHECKING:  # masks are made without torch, too
    from torch import nn

IN_MEMORY = 256 << 20
"""Bytes of one input's probabilities that are held in memory; more lie in a file beside the masks until they are
written."""


class Written(NamedTuple):
    """A mask that was written, and its input."""

    input: Path
    mask: Path
    ids: NDArray[np.uint8]
    """What is in the mask's file, in the file's axes."""
    voxel_ml: float | None = None
    """Of a scan."""
    note: str = ""
    """What a person should know of how the input was read."""
    sureness: Sureness | None = None


class Planned(NamedTuple):
    """The files to segment, and where each mask goes."""

    inputs: list[Path]
    targets: list[Path]


class Opened(NamedTuple):
    """An input that was read."""

    path: Path
    target: Path
    volumes: Sequence[Volume]
    """What is segmented on its own: one image or volume, or each volume of a 4-D scan."""
    note: str
    scan: OpenScan | None
    calibration: dict[int, Any] | None = None
    """Of a TIFF of several pages, which its mask becomes too."""
    axes_of_slices: int = 3
    """Of what is a volume: 3, or 4 of several channels."""

    @property
    def spacing(self) -> tuple[float, float, float] | None:
        """mm along z, y, x of the volumes; None for what is no scan, or has none."""
        return None if self.scan is None else self.scan.spacing

    @property
    def write(self) -> Callable[[Path, NDArray[np.uint8]], object]:
        """Writes the mask."""
        if self.scan is not None:
            return self.scan.write
        return write_mask if self.calibration is None else partial(tiff_stack.write, self.calibration)

    @property
    def bytes(self) -> int:
        """That it takes in memory, the mask that is to be made included."""
        every = self.scan.volumes if self.scan else self.volumes
        return sum(int(np.prod(held.shape)) + getattr(held, "nbytes", 0) for held in every)

    @property
    def slices(self) -> int:
        """That the network sees."""
        return sum(len(each) if each.ndim == self.axes_of_slices else 1 for each in self.volumes)


class Masked(NamedTuple):
    """An input that was segmented, with what is to be written of it."""

    written: Written
    write: Callable[[Path, NDArray[np.uint8]], object]
    probabilities: NDArray[np.float16] | None
    """(classes, *ids' shape)"""
    preview: bytes | None


def predict_files(model: nn.Module, info: BundleInfo, inputs: list[Path], out: Path) -> list[Path]:
    """Write one mask a file into `out`; nothing there is replaced. See `plan` and `predict_one`."""
    from rwkvctl.models.ensemble import Member, Segmenter

    segmenter, planned = Segmenter([Member(model, info)]), plan(inputs, info, out)
    return [predict_one(segmenter, *each).mask for each in zip(*planned, strict=True)]


def plan(
    inputs: Sequence[Path],
    info: BundleInfo,
    out: Path,
    *,
    overwrite: bool = False,
    replaceable: Collection[str] = (),
    window: deep.Range | None = None,
    form: Form = Form(),
) -> Planned:
    """Everything that can be known to be wrong before the model is loaded and the first mask is written.

    Inputs are files, or folders whose images, arrays and scans are all meant. `overwrite` lets masks replace files that
    are no inputs; those named `replaceable` may be replaced without. `window`, a stated range of raw values, is for
    models that have no rule of their own.
    """
    if window is not None and info.intensity is not None:
        clip = normalise.only_range(info.intensity)
        own = "one a channel" if clip is None else f"clip to {list(clip)}"
        raise UserError(f"--range: the model has a rule of its own ({own}); leave it out")
    files = predict_channels.cases(input_files(inputs), info)
    form.check(files, info)
    return Planned(files, checked_targets(files, info, out, overwrite=overwrite, replaceable=replaceable, form=form))


def predict_one(
    segmenter: MakesMasks,
    path: Path,
    target: Path,
    window: deep.Range | None = None,
    *,
    preview: bool = False,
    form: Form = Form(),
) -> Written:
    """Segment a file and write its mask: a palette PNG of class ids for an image, `.npy` (uint8) for a volume, and for
    a scan a file of its kind on its own grid, or another `form`; with probabilities, if they are asked for, in `.npz`
    beside it, and a picture in the folder `previews`.

    Inputs are images (JPEG, PNG, TIFF, BMP), scans (`.nii`, `.nii.gz`) as they come from the scanner, or slices (H, W)
    and volumes (D, H, W) as `.npy` or as the data set `image` of an `.h5` file, see `predict_inputs`.
    """
    return write(segment(segmenter, read(segmenter.info, path, target, window, form), preview=preview))


def read(info: BundleInfo, path: Path, target: Path, window: deep.Range | None = None, form: Form = Form()) -> Opened:
    """A file as the model takes it; UserError for what it cannot be."""
    axes = 4 if info.channels > 1 else 3
    if info.image_kind == "rgb8":
        axes = 5  # none: each picture is segmented on its own
    if is_scan(path):
        scan = open_scan(path, info, form)
        return Opened(path, target, scan.volumes, scan.note, scan, axes_of_slices=axes)
    given = read_input(path, info, window)
    volumes = list(given.values) if given.values.dtype == np.uint8 and given.values.ndim == 4 else [given.values]
    return Opened(path, target, volumes, given.note, None, given.calibration, axes)


def segment(
    segmenter: MakesMasks, opened: Opened, *, preview: bool = False, seen: Callable[[int], None] = not_seen
) -> Masked:
    """The mask of an input in the axes of its file, and its picture; the voxels are not needed any more.

    seen: is told how many slices were segmented, each time.
    """
    kept = partial(float16_somewhere, opened.target.parent)
    with one_line(opened.path):
        found = [segmenter.segment(each, spacing=opened.spacing, seen=seen, kept=kept) for each in opened.volumes]
    picture = preview_png(*most_of(opened.volumes[0], found[0].mask)) if preview else None
    masks = [each.mask for each in found]
    every = [each.probabilities for each in found if each.probabilities is not None]
    likely: NDArray[np.float16] | None
    if (scan := opened.scan) is not None:
        ids, ml = scan.joined(masks, partial(np.empty, dtype=np.uint8)), scan.voxel_ml
        likely = scan.joined(every, kept) if every else None
    else:
        ids, ml = (np.stack(masks) if len(masks) > 1 else masks[0]), None
        likely = None if not every else np.stack(every, axis=1) if len(every) > 1 else every[0]
    sureness = together([each.sureness for each in found])
    written = Written(opened.path, opened.target, ids, ml, opened.note, sureness)
    return Masked(written, opened.write, likely, picture)


def most_of(values: Volume, mask: NDArray[np.uint8]) -> tuple[NDArray[Any], NDArray[np.uint8]]:
    """An image and its mask; of a volume, the slice with the most in its mask."""
    if mask.ndim == 2:
        return values[...], mask
    areas = [np.count_nonzero(each) for each in mask]
    z = int(np.argmax(areas)) if any(areas) else len(mask) // 2
    return values[z], mask[z]


def write(masked: Masked) -> Written:
    """Write what is to be written of an input, its mask last: where it is, all is."""
    target = masked.written.mask
    try:
        if masked.probabilities is not None:
            write_probabilities(probabilities_of(target), masked.probabilities)
        if masked.preview is not None:
            write_bytes(preview_of(target), masked.preview)
        masked.write(target, masked.written.ids)
        return masked.written
    except OSError as error:
        raise JobFailedError(f"{target}: cannot be written ({error.strerror})") from error


def write_mask(target: Path, mask: np.ndarray[Any, Any]) -> Path:
    """Write a mask that is no scan's atomically."""
    with atomic_open(target) as file:
        if mask.ndim == 3:
            np.save(file, mask)
        else:
            picture = Image.fromarray(mask)
            picture.putpalette(palette().ravel().tolist())
            picture.save(file, format="PNG", bits=8)  # else Pillow packs small ids into fewer bits
    return target


def float16_somewhere(out: Path, shape: tuple[int, ...]) -> NDArray[np.float16]:
    """An array in memory, or if it is large in a file in `out` that has no name, and ends with the array.

    JobFailedError where the disk has no room for it."""
    size = int(np.prod(shape)) * 2
    if size <= IN_MEMORY:
        return np.empty(shape, np.float16)
    try:
        return array_on_disk(out, shape, np.float16)
    except OSError as error:
        raise JobFailedError(
            f"{out}: no room for probabilities while they are made ({error.strerror}; {size >> 20} MiB)"
        ) from error
