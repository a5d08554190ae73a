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
        is_flat = spacing[0] > THICK * max(spacing[1:])
        most = min(augment.degrees, MOST_TILT)
        tilts = (0.0, 0.0) if is_flat else (float(rng.uniform(-most, most)), float(rng.uniform(-most, most)))
        image, mask = turned(volume, start, patch, matrix((angle, *tilts), scale, spacing))
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


def matrix(angles: Sequence[float], scale: float, spacing: Sequence[float]) -> NDArray[np.float64]:
    """(3, 3): from a voxel of the patch to that of the volume, both counted (z, y, x) from their middle.

    angles: degrees around z, y and x, turned in mm. scale: above 1 what is seen gets larger.
    """
    turn = np.eye(3)
    for axis, degrees in enumerate(angles):
        first, second = [other for other in range(3) if other != axis]
        c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        own = np.eye(3)
        own[[first, first, second, second], [first, second, first, second]] = c, -s, s, c
        turn = turn @ own
    return turn * np.asarray(spacing) / np.asarray(spacing)[:, None] / scale


def turned(volume: Volume, start: Shape, patch: Shape, moves: NDArray[np.float64]) -> Patch:
    """The patch whose voxels are those of the volume by the matrix: linear of the image, nearest of the mask."""
    half = (np.asarray(patch) - 1) / 2
    middle = np.asarray(start) + half
    reach = np.abs(moves) @ half
    low = np.floor(middle - reach).astype(int)
    size = np.ceil(middle + reach).astype(int) - low + 1
    low, size = within(low, size, volume.shape)
    image, mask = whole_box(volume, low.tolist(), size.tolist())
    # grid_sample counts from -1 to 1 between the outer edges of a part, x first.
    grid = grid_of(2 / size[:, None] * moves, 2 * (middle - low + 0.5) / size - 1, patch)
    sample = partial(F.grid_sample, grid=grid, padding_mode="border", align_corners=False)
    ids = sample(torch.from_numpy(mask).float()[None, None], mode="nearest")[0, 0]
    return sample(torch.from_numpy(image)[None], mode="bilinear")[0], ids.to(torch.uint8)


def grid_of(moves: NDArray[np.float64], shift: NDArray[np.float64], patch: Shape) -> torch.Tensor:
    """(1, D, H, W, 3) for grid_sample: where each voxel of a patch, counted from its middle, is to be read. Sums of
    what each axis adds, which takes a fifth of the time of torch's own `affine_grid`."""
    z, y, x = (torch.arange(side) - (side - 1) / 2 for side in patch)
    grid = torch.empty(1, *patch, 3)
    for last, (by, at) in enumerate(zip(moves[::-1], shift[::-1], strict=True)):
        plane = (by[1] * y + at)[:, None] + by[2] * x
        torch.add((by[0] * z)[:, None, None], plane, out=grid[0, ..., last])
    return grid


def within(low: NDArray[np.int_], size: NDArray[np.int_], shape: Shape) -> tuple[NDArray[np.int_], NDArray[np.int_]]:
    """The part of a box that is in the volume, at least a voxel along each axis: sampling continues its border."""
    first = np.clip(low, 0, np.asarray(shape) - 1)
    last = np.clip(low + size, first + 1, np.asarray(shape))
    return first, last - first


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
