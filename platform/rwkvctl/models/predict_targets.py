"""Where masks are written: known for all inputs before the first is segmented, so that no file is written over."""

from __future__ import annotations

import os
import tempfile
import unicodedata
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path

from rwkvctl.base.errors import UserError
from rwkvctl.data.images import tiff_stack
from rwkvctl.models import predict_channels, predict_scans
from rwkvctl.models.bundle import BundleInfo
from rwkvctl.models.predict_form import Form
from rwkvctl.models.predict_inputs import array_shape
from rwkvctl.models.predict_scans import is_scan


def mask_name(path: Path, info: BundleInfo, form: Form = Form()) -> str:
    """The name of an input's mask: a scan's own; `.tif` for a TIFF of several pages; `.npy` for another volume's;
    `.png` for every other."""
    path = path.with_name(predict_channels.case_name(path, info)) if not path.is_dir() else path
    if is_scan(path):
        return predict_scans.mask_name(path, form)
    if tiff_stack.page_count(path) > 1:
        return f"{path.stem}.tif"
    shape = array_shape(path) if info.image_kind == "float" else None
    volume = 4 if info.channels > 1 else 3
    return f"{path.stem}.{'npy' if shape is not None and len(shape) == volume else 'png'}"


def probabilities_of(target: Path) -> Path:
    """The file of probabilities beside a mask's."""
    return target.with_name(f"{target.name.removesuffix('.gz').rpartition('.')[0]}.probabilities.npz")


def preview_of(target: Path) -> Path:
    """The picture of a mask and its image."""
    return target.parent / "previews" / f"{target.name}.png"


def checked_targets(
    inputs: Sequence[Path],
    info: BundleInfo,
    out: Path,
    *,
    overwrite: bool,
    replaceable: Collection[str] = (),
    form: Form = Form(),
) -> list[Path]:
    """The mask file of every input, in `out`.

    UserError if `out` is no folder or cannot be written, if two masks would have one name (also where upper and lower
    case are the same), if a mask would replace an input, by whatever link, or any other file without `overwrite`.
    """
    check_folder(out)
    sources = {_identity(file): path for path in inputs for file in (path, *(path.iterdir() if path.is_dir() else ()))}
    taken: dict[str, Path] = {}
    targets = []
    for path in inputs:
        target = out / mask_name(path, info, form)
        key = unicodedata.normalize("NFC", target.name).casefold()
        if key in taken:
            raise UserError(_same_name(path, taken[key]))
        taken[key] = path
        if os.path.lexists(target):
            _check_taken(target, sources, out, overwrite or target.name in replaceable)
        targets.append(target)
    return targets


def _same_name(path: Path, other: Path) -> str:
    if path == other:
        return f"input {path}: is given twice; give it once"
    return f"input {path}: another input has the same name {path.stem} ({other}); predict them into two folders"


def _check_taken(target: Path, sources: dict[tuple[int, int], Path], out: Path, overwrite: bool) -> None:
    source = sources.get(_identity(target)) if target.exists() else None
    if source is not None:
        raise UserError(f"--out {out}: {target.name} is the input {source}, which is not replaced; give another folder")
    if target.is_dir():
        raise UserError(f"--out {out}: {target.name} is a folder, where a mask is to be written; give another folder")
    if not overwrite:
        raise UserError(f"--out {out}: {target.name} exists; give another folder, or --overwrite to replace it")


def _identity(path: Path) -> tuple[int, int]:
    """Device and inode: equal for one file under two names."""
    status = path.stat()
    return status.st_dev, status.st_ino


def check_folder(out: Path) -> None:
    """UserError unless files can be written into the folder `out`. It need not be there yet, and then is not made."""
    missing: list[Path] = []
    place = out
    while not os.path.lexists(place):
        missing.append(place)
        place = place.parent
    if not place.is_dir():
        raise UserError(f"--out {out}: {'is' if place == out else f'{place} is'} a file; give a folder")
    try:
        for folder in reversed(missing):
            folder.mkdir()
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written ({error.strerror}); give another folder") from None
    finally:
        for folder in missing:
            with suppress(OSError):
                folder.rmdir()
