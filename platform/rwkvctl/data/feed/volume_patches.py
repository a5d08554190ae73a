"""Patches of volumes: where they lie, how they are turned and scaled as they are read, and what they look like.

Geometry is one interpolation, of a part of the volume that is large enough: a turned patch has no empty corners. Thick
slices turn within themselves alone, as nnU-Net has it; voxels that are nearly cubes turn around all three axes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from rwkvctl.config.specs.augment import SegmentationAugment
from rwkvctl.config.specs.volumes import VolumesSpec
from rwkvctl.data.feed.appearance import change_volume
from rwkvctl.data.feed.resample import Shape
from rwkvctl.data.feed.samples import Item, Samples
from rwkvctl.data.feed.transforms import brightness_contrast, drawn_affine, smooth_shifts, to_unit
from rwkvctl.data.feed.volume_cache import Box, Volume, Volumes

THICK = 3.0
"""Slices whose voxels are so many times as long across as within do not turn out of their plane."""
MOST_TILT = 30.0
"""Degrees around the axes within a slice, at most, as nnU-Net."""

Patch = tuple[torch.Tensor, torch.Tensor]
"""float32 (C, D, H, W), uint8 (D, H, W)."""


class VolumePatches(Samples):
    """(epoch, position) -> patch, mask, case. Positions count the patches of a pass, those of a case one after the
    other; which patch it is, is drawn anew in every epoch."""

    def __init__(self, volumes: Volumes, seed: int, spec: VolumesSpec, augment: SegmentationAugment | None):
        super().__init__(volumes.reader, seed)
        assert spec.patch != "auto", "planned before"
        self.volumes, self.spec, self.augment, self.patch = volumes, spec, augment, spec.patch

    def __len__(self) -> int:
        return len(self.volumes) * self.spec.patches_per_case

    def key(self, position: int) -> str:
        return self.reader.key(position // self.spec.patches_per_case)

    def load(self, position: int, rng: np.random.Generator) -> Item:
        volume = self.volumes.volume(position // self.spec.patches_per_case)
        start = place(volume, self.patch, self.spec.foreground, rng)
        if self.augment is None:
            pixels, mask = whole_box(volume, start, self.patch)
            return torch.from_numpy(pixels), torch.from_numpy(mask), self.key(position)
        spacing = self.volumes.spacing or (self.spec.thickness, 1.0, 1.0)
        image, ids = geometry(volume, start, self.patch, spacing, self.augment, self.spec.depth_flip, rng)
        return appearance(image, self.augment, rng), ids, self.key(position)


# Where --------------------------------------------------------------------------------------------------------------


def place(volume: Volume, patch: Shape, foreground: float, rng: np.random.Generator) -> Shape:
    """The first voxel of a patch: with the probability `foreground` around a voxel of one of the volume's classes,
    else anywhere. Within the volume as far as it is large enough; of a smaller one the middle."""
    if rng.random() < foreground and volume.classes:
        voxels = volume.voxels_of(volume.classes[int(rng.integers(len(volume.classes)))])
        around = voxels[int(rng.integers(len(voxels)))]
        wanted = [int(at) - side // 2 for at, side in zip(around, patch, strict=True)]
    else:
        wanted = [int(rng.integers(max(0, n - side) + 1)) for n, side in zip(volume.shape, patch, strict=True)]
    depth, height, width = (
        min(max(at, 0), n - side) if n >= side else -((side - n) // 2)
        for at, n, side in zip(wanted, volume.shape, patch, strict=True)
    )
    return depth, height, width


def whole_box(
    volume: Volume, start: Sequence[int], size: Sequence[int]
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Image and mask of a box; what is outside the volume is its border continued."""
    inside, around = [], []
    for at, side, n in zip(start, size, volume.shape, strict=True):
        low, high = min(max(at, 0), n - 1), min(max(at + side, 1), n)
        inside.append(slice(low, high))
        around.append((low - at if low > at else 0, at + side - high if at + side > high else 0))
    box: Box = (inside[0], inside[1], inside[2])
    image, mask = volume.read(box)
    if any(map(any, around)):
        image, mask = np.pad(image, [(0, 0), *around], "edge"), np.pad(mask, around, "edge")
        assert mask.shape == tuple(size), "a box that touches the volume"
    return image, mask


# How it lies --------------------------------------------------------------------------------------------------------


def geometry(
    volume: Volume,
    start: Shape,
    patch: Shape,
    spacing: Sequence[float],
    augment: SegmentationAugment,
    depth_flip: float,
    rng: np.random.Generator,
) -> Patch:
    """A patch turned and scaled at random, flipped, by quarter turns of its slices, and deformed within them."""
    affine = drawn_affine(augment, rng)
    if affine is None:
        found = whole_box(volume, start, patch)
        image, mask = torch.from_numpy(found[0]), torch.from_numpy(found[1])
    else:
        angle, scale = affine
        if spacing[0] > THICK * max(spacing[1:]):
            moves = matrix((angle, 0, 0), (1, scale, scale), spacing)
            image, mask = turned_slices(volume, start, patch, moves[1:, 1:])
        else:
            most = min(augment.degrees, MOST_TILT)
            tilts = float(rng.uniform(-most, most)), float(rng.uniform(-most, most))
            image, mask = turned(volume, start, patch, matrix((angle, *tilts), (scale, scale, scale), spacing))
    flipped = [
        axis
        for axis, share in ((-1, augment.horizontal_flip), (-2, augment.vertical_flip), (-3, depth_flip))
        if rng.random() < share
    ]
    image, mask = image.flip(flipped), mask.flip(flipped)
    if rng.random() < augment.rotate90 and patch[1] == patch[2]:
        quarters = int(rng.integers(1, 4))
        image, mask = (torch.rot90(x, quarters, (-2, -1)) for x in (image, mask))
    if augment.elastic and rng.random() < augment.elastic:
        shifts = smooth_shifts((patch[1], patch[2]), augment, rng)
        image = functional.elastic(image.flatten(0, 1), shifts, InterpolationMode.BILINEAR).reshape(image.shape)
        mask = functional.elastic(mask, shifts, InterpolationMode.NEAREST)
    return image.contiguous(), mask.contiguous()


def matrix(angles: Sequence[float], scale: Sequence[float], spacing: Sequence[float]) -> NDArray[np.float64]:
    """(3, 3): from a voxel of the patch to that of the volume, both counted (z, y, x) from their middle.

    angles: degrees around z, y and x, turned in mm. scale: of the patch's axes; above 1 what is seen gets larger.
    """
    turn = np.eye(3)
    for axis, degrees in enumerate(angles):
        first, second = [other for other in range(3) if other != axis]
        c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        own = np.eye(3)
        own[[first, first, second, second], [first, second, first, second]] = c, -s, s, c
        turn = turn @ own
    return turn * np.asarray(spacing) / np.asarray(spacing)[:, None] / np.asarray(scale)


def turned(volume: Volume, start: Shape, patch: Shape, moves: NDArray[np.float64]) -> Patch:
    """The patch whose voxels are those of the volume by the matrix (3, 3): linear of the image, nearest of the mask."""
    low, size, grid = reading(moves, start, patch, volume.shape)
    image, mask = whole_box(volume, low, size)
    sample = partial(F.grid_sample, grid=grid, padding_mode="border", align_corners=False)
    ids = sample(torch.from_numpy(mask).float()[None, None], mode="nearest")[0, 0]
    return sample(torch.from_numpy(image)[None], mode="bilinear")[0], ids.to(torch.uint8)


def turned_slices(volume: Volume, start: Shape, patch: Shape, moves: NDArray[np.float64]) -> Patch:
    """The same of every slice by itself, by a matrix (2, 2)."""
    low, size, grid = reading(moves, start[1:], patch[1:], volume.shape[1:])
    image, mask = whole_box(volume, [start[0], *low], [patch[0], *size])
    sample = partial(F.grid_sample, grid=grid, padding_mode="border", align_corners=False)
    ids = sample(torch.from_numpy(mask).float()[None], mode="nearest")[0]
    slices = torch.from_numpy(image).flatten(0, 1)
    return sample(slices[None], mode="bilinear")[0].reshape(-1, *patch), ids.to(torch.uint8)


def reading(
    moves: NDArray[np.float64], start: Sequence[int], patch: Sequence[int], shape: Sequence[int]
) -> tuple[list[int], list[int], torch.Tensor]:
    """What is to be read for a patch that is moved, over two axes or three: first voxel and size of a part, within the
    volume, whose border sampling continues; and where in it each voxel of the patch is, for grid_sample.

    That is a sum of what each axis adds, which takes a fifth of the time of torch's own `affine_grid`.
    """
    half = (np.asarray(patch) - 1) / 2
    middle = np.asarray(start) + half
    reach = np.abs(moves) @ half
    low = np.clip(np.floor(middle - reach).astype(int), 0, np.asarray(shape) - 1)
    size = np.clip(np.ceil(middle + reach).astype(int) + 1, low + 1, np.asarray(shape)) - low
    # grid_sample counts from -1 to 1 between the outer edges of the part, its last axis first.
    scaled, shift = 2 / size[:, None] * moves, 2 * (middle - low + 0.5) / size - 1
    grid = torch.empty(1, *patch, len(patch))
    *outer, inner = (torch.arange(side) - (side - 1) / 2 for side in patch)
    for last, (by, at) in enumerate(zip(scaled[::-1], shift[::-1], strict=True)):
        found = by[-1] * inner + at
        for axis, each in reversed(list(enumerate(outer))):
            found = (by[axis] * each).reshape(-1, *[1] * found.ndim) + found
        grid[0, ..., last] = found
    return low.tolist(), size.tolist(), grid


# How it looks -------------------------------------------------------------------------------------------------------


def appearance(image: torch.Tensor, augment: SegmentationAugment, rng: np.random.Generator) -> torch.Tensor:
    """(C, D, H, W) with brightness, contrast and the rest changed at random, as those of slices."""
    shape = image.shape
    rows = image.flatten(1, 2).permute(1, 2, 0).numpy()  # (D * H, W, C)
    unit, low, span = to_unit(np.ascontiguousarray(rows[..., 0] if shape[0] == 1 else rows))
    unit = brightness_contrast(unit, augment, rng)
    planes = torch.from_numpy(np.ascontiguousarray(unit[..., None] if unit.ndim == 2 else unit)).permute(2, 0, 1)
    changed = change_volume(planes.reshape(shape), augment, rng)
    if span is not None:
        changed = changed * span[..., None] + low[..., None]  # type: ignore[index]
    return changed.contiguous()
