"""The files of an exported case, as nnU-Net names them: image, channels and labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwkvctl.base.errors import UserError
from rwkvctl.data.convert import stored_values
from rwkvctl.data.images import files as image_files
from rwkvctl.data.images import grid, nifti, normalise
from rwkvctl.data.store.manifest import Manifest
from rwkvctl.data.store.reader import Reader

VOLUMES, IMAGES = ".nii.gz", ".png"
_NO_GRID = {"axes": "LPS", "origin": (0, 0, 0), "direction": (-1, 0, 0, 0, -1, 0, 0, 0, 1)}
"""Of a volume whose file told no grid."""

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Case:
    """rows: of the reader, one a slice in their order, or that of the whole volume or image; meta: the first's json."""

    name: str
    rows: tuple[int, ...]
    meta: Mapping[str, Any] = field(repr=False)


class Writer:
    """Writes cases as nnU-Net names them. ignored: whether a mask so far had pixels that count for nothing."""

    ending: str
    channels: dict[str, str]
    """Their names by number."""
    values: str
    without_spacing = 0

    def __init__(self, manifest: Manifest, reader: Reader):
        self.manifest, self.reader, self.ignored = manifest, reader, False

    def write(self, folder: Path, part: str, cases: Sequence[Case], progress: Progress | None) -> None:
        for done, case in enumerate(cases, 1):
            image = folder / f"images{part}" / case.name
            self.pair(case, image, folder / f"labels{part}" / f"{case.name}{self.ending}")
            if progress:
                progress(f"images{part}", done, len(cases))

    def pair(self, case: Case, image: Path, labels: Path) -> None:
        """Write the files of a case, those of the image with `_0000` and so on behind their name."""
        raise NotImplementedError

    def file_of(self, image: Path, number: int) -> Path:
        return image.with_name(f"{image.name}_{number:04d}{self.ending}")

    def ids(self, row: int) -> NDArray[np.uint8]:
        """The labels of a sample, with those that count for nothing after the last class."""
        ids = self.reader.mask(row)
        ignored = ids == self.manifest.ignore_index
        if ignored.any():
            self.ignored = True
            ids[ignored] = len(self.manifest.classes)
        return ids


class _Images(Writer):
    """Photographs: one colour PNG, which nnU-Net reads as three channels."""

    ending, channels = IMAGES, {"0": "R", "1": "G", "2": "B"}
    values = "8-bit colours as they are stored"

    def pair(self, case: Case, image: Path, labels: Path) -> None:
        (row,) = case.rows
        self.file_of(image, 0).write_bytes(image_files.encode_png(self.reader.image(row)))
        labels.write_bytes(image_files.encode_png(self.ids(row)))


class _Pictures(Writer):
    """Images that were put together of several files: a grey PNG a channel, since nnU-Net wants files alike."""

    ending = IMAGES
    values = "numbers of the files"

    def __init__(self, manifest: Manifest, reader: Reader, cases: Sequence[Case]):
        super().__init__(manifest, reader)
        self.channels = dict(zip(map(str, range(manifest.channels)), manifest.channel_names, strict=True))
        floats = next((case.name for case in cases if "float" in str(case.meta.get("orig_mode"))), None)
        if floats:
            raise UserError(f"{manifest.location}: {floats} was made of floats, which PNG files do not hold")

    def pair(self, case: Case, image: Path, labels: Path) -> None:
        (row,) = case.rows
        rules = stored_values.known(case.meta)
        assert rules is not None, "the samples' json tells them"
        channels = stored_values.restored(np.asarray(self.reader.image(row), np.float32), rules, case.meta)
        modes = str(case.meta["orig_mode"]).split(", ")
        for number, (own, mode) in enumerate(zip(channels, modes, strict=True)):
            self.file_of(image, number).write_bytes(image_files.encode_png(own.astype(mode)))
        labels.write_bytes(image_files.encode_png(self.ids(row)))


class _Volumes(Writer):
    ending = VOLUMES

    def __init__(self, manifest: Manifest, reader: Reader, cases: Sequence[Case]):
        super().__init__(manifest, reader)
        window = normalise.only_range(manifest.content.intensity) or ()
        # nnU-Net takes CT's numbers to be on one scale, and brings every other volume to its own mean and deviation.
        names = ["scan" if not window or any(isinstance(bound, str) for bound in window) else "CT"]
        self.channels = dict(zip(map(str, range(manifest.channels)), manifest.channel_names or names, strict=True))
        self.unscale = all(stored_values.known(case.meta) for case in cases)
        self.values = "the scanner's numbers" if self.unscale else "numbers as they are stored"
        if not self.unscale and window:
            self.values += ", scaled to 0..1"
        clips = [rule.clip for rule in normalise.rules_of(manifest.content.intensity) or () if rule.clip]
        if clips:
            self.values += ", clipped to " + " and ".join(f"{_text(low)}..{_text(high)}" for low, high in clips)
        self.without_spacing = sum("spacing_mm" not in case.meta for case in cases)

    def pair(self, case: Case, image: Path, labels: Path) -> None:
        ids = self._stacked([self.ids(row) for row in case.rows])
        voxels = self._stacked([self.reader.image(row) for row in case.rows], ids.ndim)
        rules = stored_values.known(case.meta) if self.unscale else None
        if rules:
            channels = stored_values.restored(voxels, rules, case.meta)
        else:
            channels = [voxels] if voxels.ndim == 3 else list(np.moveaxis(voxels, -1, 0))
        files = [self.file_of(image, number) for number in range(len(channels))]
        stored = self.manifest.content.orientation
        place = {**_NO_GRID, "orientation": stored or "itk", "spacing_mm": (1, 1, 1), **case.meta}
        affine = grid.affine_of(place)
        for path, array in zip([*files, labels], [*channels, ids], strict=True):
            array = grid.turned_back(array, place)
            with path.open("wb") as file:
                nifti.write(file, nifti.header_of(affine, array.shape), array, gzipped=True)

    @staticmethod
    def _stacked(arrays: Sequence[NDArray[Any]], axes: int = 3) -> NDArray[Any]:
        """(D, H, W[, C]) of a whole volume, or of its slices (H, W[, C])."""
        return arrays[0] if len(arrays) == 1 and arrays[0].ndim >= axes else np.stack(arrays)


def writer_for(manifest: Manifest, reader: Reader, cases: Sequence[Case]) -> Writer:
    if manifest.image_kind == "rgb8":
        return _Images(manifest, reader)
    if manifest.content.channel_files:
        return _Pictures(manifest, reader, cases)
    return _Volumes(manifest, reader, cases)


def _text(bound: float | str) -> str:
    return bound if isinstance(bound, str) else f"{bound:g}"
