"""How preprocessed Synapse slices lie to the raw release: one case in both, under the eight dihedral variants.

Public preprocessings turn the slices differently, and a model that was trained on one does not work on another. This
settles which one a folder of npz files has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwkvctl.base.errors import BadFile, UserError
from rwkvctl.data.convert import discover
from rwkvctl.data.convert.discover import Problems
from rwkvctl.data.convert.formats import synapse, synapse_files
from rwkvctl.data.convert.formats.scan_pairs import whole_numbers
from rwkvctl.data.convert.sources import RawFile, open_sources
from rwkvctl.data.images import grid, intensity, nifti

VARIANTS: dict[str, Callable[[NDArray[Any]], NDArray[Any]]] = {
    "x, y": lambda plane: plane,
    "x, -y": lambda plane: plane[:, ::-1],
    "-x, y": lambda plane: plane[::-1],
    "-x, -y": lambda plane: plane[::-1, ::-1],
    "y, x": lambda plane: plane.T,
    "y, -x": lambda plane: plane.T[:, ::-1],
    "-y, x": lambda plane: plane.T[::-1],
    "-y, -x": lambda plane: plane.T[::-1, ::-1],
}
"""Rows and columns of a stored slice in terms of the release's axes x (to the left) and y (to the front) -> how a plane
[x, y] is turned to it."""
RELEASE = "LAS"
"""Where the axes of the release's files lead; a copy that is stored otherwise is brought to them."""

ORIENTATION_OF = {"x, -y": "transunet", "x, y": "emcad", "y, x": "itk"}
EXACT = 1e-5
"""Images that differ by no more (in [0, 1]) are the same: only the rounding of float32 lies between them."""


@dataclass(frozen=True)
class Match:
    """A variant, with the slices counted from below or from above: the largest difference of an image value, and the
    share of pixels with equal labels."""

    variant: str
    reversed_z: bool
    difference: float
    labels_equal: float

    @property
    def exact(self) -> bool:
        return self.difference <= EXACT and self.labels_equal == 1

    @property
    def orientation(self) -> str | None:
        """The value of `--orientation` that gives this variant."""
        return None if self.reversed_z else ORIENTATION_OF.get(self.variant)


@dataclass(frozen=True)
class Comparison:
    """The slice that was compared and its matches, best first; `order` is the preprocessed files' label order."""

    case: int
    z: int
    order: str
    matches: list[Match]


def compare(npz: Sequence[Path | str], raw: Sequence[Path | str]) -> Comparison:
    """Compare the richest slice of the first case that both sources have. UserError when there is none."""
    with open_sources(npz) as preprocessed, open_sources(raw) as release:
        problems = Problems(str(preprocessed))
        slices = discover.by_pattern(preprocessed.files, synapse.SLICE_ID, problems)
        images = discover.by_pattern(release.files, synapse.IMAGE, problems)
        labels = discover.by_pattern(release.files, synapse.LABEL, problems)
        problems.raise_if_any()
        by_case: dict[int, list[RawFile]] = {}
        for name, file in slices.items():
            by_case.setdefault(int(name.partition("_")[0]), []).append(file)
        common = [n for n in sorted(by_case) if str(n) in images and str(n) in labels]
        if not common:
            raise UserError(
                f"{preprocessed}: no case of its npz slices ({len(by_case)} cases) is in {release} as imgXXXX.nii.gz "
                f"with its label ({len(images)} cases)"
            )
        try:
            return _compare_case(common[0], by_case[common[0]], images[str(common[0])], labels[str(common[0])])
        except BadFile as error:
            raise UserError(str(error)) from error


def _compare_case(case: int, files: list[RawFile], image_file: RawFile, label_file: RawFile) -> Comparison:
    order = synapse_files.label_order(files)
    read = [synapse_files.read_arrays(file) for file in files]
    organs = [len(np.unique(own.labels)) * 10**8 + np.count_nonzero(own.labels) for own in read]
    z = int(np.argmax(organs))
    image, ids = read[z].image, order.renumber(read[z].labels)
    volume, truth = _as_released(image_file, label_file)
    if volume.shape[2] != len(files):
        raise BadFile(f"{image_file}: has {volume.shape[2]} slices, case{case:04d} has {len(files)} npz files")
    matches = []
    for reversed_z in (False, True):
        level = volume.shape[2] - 1 - z if reversed_z else z
        for name, turn in VARIANTS.items():
            other, other_ids = turn(volume[:, :, level]), turn(truth[:, :, level])
            if other.shape == image.shape:
                difference = float(np.abs(other - image).max())
                matches.append(Match(name, reversed_z, difference, float(np.mean(other_ids == ids))))
    return Comparison(case, z, order.name, sorted(matches, key=lambda match: (match.difference, -match.labels_equal)))


def _as_released(image_file: RawFile, label_file: RawFile) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """A raw case's values in [0, 1] and ids, along the axes of the release."""
    image, labels = nifti.read(image_file), nifti.read(label_file)
    place = grid.aligned(label_file, labels.grid, image_file, image.grid)
    own = whole_numbers(label_file, place.on_image(labels.voxels))
    volume = intensity.scaled(grid.turned(image.voxels, image.grid, RELEASE), *synapse_files.WINDOW)
    return volume, synapse_files.BTCV.renumber(grid.turned(own, image.grid, RELEASE))
