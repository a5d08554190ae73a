"""From a volume to an augmented patch that a network over three axes is trained on, beside nnU-Net and MONAI.

    pip install nnunetv2 monai      # what is not there is left out
    python benchmarks/bench_patches.py [--patch 96 128 128] [--patches 24] [--rounds 3] [--thick]

All draw patches of the same volume with a third around the foreground, and augment them by nnU-Net's recipe: rotation
and scaling (each a fifth of the time), noise, blur, brightness, contrast, low resolution, gamma, mirrors. Ours is read
from the file in which training keeps volumes; nnU-Net's code (`nnUNetTrainer`) is given the larger part that it asks
for, from a memory map, and MONAI's transforms the whole volume. Milliseconds of one core's processor for a patch; the
median of the rounds, in which the sides take turns. --thick: slices four times as thick, which turn in their plane.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file

from rwkvctl.config.specs.augment import SegmentationAugment
from rwkvctl.data.feed import volume_patches
from rwkvctl.data.feed.resample import Shape
from rwkvctl.data.feed.volume_cache import CLASS, IMAGE, MASK, Kept, some_of

FOREGROUND = 1 / 3
NNUNET = SegmentationAugment(preset="nnunet", degrees=30)
Side = Callable[[np.random.Generator], Any]


def volume(shape: Shape) -> tuple[np.ndarray, np.ndarray]:
    """Deviations from a mean (1, D, H, W) and a mask of two organs."""
    rng = np.random.default_rng(0)
    image, mask = rng.standard_normal((1, *shape), np.float32), np.zeros(shape, np.uint8)
    d, h, w = shape
    mask[d // 3 : d // 2, h // 4 : h // 2, w // 4 : w // 2] = 1
    mask[d // 2 : d // 2 + 9, h // 2 : h // 2 + 20, w // 2 : w // 2 + 30] = 2
    return image, mask


def ours(folder: Path, image: np.ndarray, mask: np.ndarray, patch: Shape, thick: bool) -> Side:
    path = folder / "case.safetensors"
    save_file({IMAGE: image, MASK: mask} | {f"{CLASS}{value}": some_of(mask, value) for value in (1, 2)}, path)
    kept, spacing = Kept(path), (4.0 if thick else 1.0, 1.0, 1.0)

    def one(rng: np.random.Generator) -> Any:
        start = volume_patches.place(kept, patch, FOREGROUND, rng)
        pixels, ids = volume_patches.geometry(kept, start, patch, spacing, NNUNET, 0.5, rng)
        return volume_patches.appearance(pixels, NNUNET, rng), ids

    return one


def nnunet(folder: Path, image: np.ndarray, mask: np.ndarray, patch: Shape, thick: bool) -> Side:
    """As `nnUNetTrainer` sets its transforms up, and `nnUNetDataLoader` cuts the part that they begin with."""
    from nnunetv2.training.data_augmentation.compute_initial_patch_size import get_patch_size
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    turn = (-np.pi / 6, np.pi / 6)
    flat = (0.0, 0.0)
    larger = get_patch_size(patch, *((turn, flat, flat) if thick else (turn, turn, turn)), (0.85, 1.25))
    if thick:
        larger[0] = patch[0]
    transforms = nnUNetTrainer.get_training_transforms(patch, turn, None, (0, 1, 2), thick)
    for name, array in (("image", image), ("mask", mask[None].astype(np.int16))):
        np.save(folder / f"{name}.npy", array)
    held = [np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("image", "mask")]
    voxels = {value: some_of(mask, value) for value in (1, 2)}

    def one(rng: np.random.Generator) -> Any:
        start = place(mask.shape, voxels, larger, rng)
        box = tuple(slice(at, at + side) for at, side in zip(start, larger, strict=True))
        parts = [torch.from_numpy(np.ascontiguousarray(part[:, *box])) for part in held]
        return transforms(image=parts[0].float(), segmentation=parts[1])

    return one


def place(shape: Any, voxels: dict[int, np.ndarray], size: Any, rng: np.random.Generator) -> list[int]:
    """Where a part begins: within the volume, a third around a voxel of a class."""
    at = [rng.integers(max(1, n - side + 1)) for n, side in zip(shape, size, strict=True)]
    if rng.random() < FOREGROUND:
        own = voxels[int(rng.integers(1, 3))]
        at = own[int(rng.integers(len(own)))] - np.asarray(size) // 2
    return [int(np.clip(a, 0, max(0, n - side))) for a, n, side in zip(at, shape, size, strict=True)]


def monai(folder: Path, image: np.ndarray, mask: np.ndarray, patch: Shape, thick: bool) -> Side:
    """The same steps by MONAI's transforms of a dictionary, as its tutorials have them."""
    from monai import transforms as m

    both = ["image", "mask"]
    turn = np.pi / 6
    steps = m.Compose(
        [
            m.RandCropByPosNegLabeld(
                both, "mask", patch, pos=1, neg=2, num_samples=1, fg_indices_key="fg", bg_indices_key="bg"
            ),
            m.RandAffined(
                both, prob=0.36, rotate_range=(turn, 0, 0) if thick else (turn, turn, turn),
                scale_range=(0.3, 0.3, 0.3), mode=("bilinear", "nearest"), padding_mode="border",
            ),
            m.RandGaussianNoised("image", prob=0.1, std=0.1),
            m.RandGaussianSmoothd("image", sigma_x=(0.5, 1), sigma_y=(0.5, 1), sigma_z=(0.5, 1), prob=0.2),
            m.RandScaleIntensityd("image", factors=0.25, prob=0.15),
            m.RandAdjustContrastd("image", prob=0.15, gamma=(0.75, 1.25)),
            m.RandSimulateLowResolutiond("image", prob=0.25, zoom_range=(0.5, 1.0)),
            m.RandAdjustContrastd("image", prob=0.1, gamma=(0.7, 1.5), invert_image=True, retain_stats=True),
            m.RandAdjustContrastd("image", prob=0.3, gamma=(0.7, 1.5), retain_stats=True),
            *(m.RandFlipd(both, prob=0.5, spatial_axis=axis) for axis in range(3)),
        ]
    )  # fmt: skip
    case = {"image": torch.from_numpy(image), "mask": torch.from_numpy(mask[None])}
    foreground = mask.ravel() > 0
    case |= {"fg": np.flatnonzero(foreground), "bg": np.flatnonzero(~foreground)}
    return lambda rng: steps(case)


def milliseconds(side: Side, patches: int, seed: int) -> float:
    """Of the processor, for a patch."""
    rng = np.random.default_rng(seed)
    start = time.process_time()
    for _ in range(patches):
        side(rng)
    return (time.process_time() - start) / patches * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patch", type=int, nargs=3, default=(96, 128, 128))
    parser.add_argument("--patches", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--thick", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    patch: Shape = tuple(options.patch)
    image, mask = volume((max(160, 2 * patch[0]), 2 * patch[1], 2 * patch[2]))
    sides: dict[str, Side] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, make in (("ours", ours), ("nnU-Net", nnunet), ("MONAI", monai)):
            try:
                sides[name] = make(Path(folder), image, mask, patch, options.thick)
            except ModuleNotFoundError as error:
                print(f"{name} is left out: {error}")
        found = {name: [] for name in sides}
        for side in sides.values():
            milliseconds(side, 2, 0)  # what happens once
        for number in range(options.rounds):
            for name, side in sides.items():
                found[name].append(partial(milliseconds, side, options.patches)(number))
    ours_ms = statistics.median(found["ours"])
    print(f"patch {' x '.join(map(str, patch))}, {options.patches} patches, {options.rounds} rounds, one thread")
    for name, own in found.items():
        middle = statistics.median(own)
        print(f"{name:8} {middle:8.1f} ms   {middle / ours_ms:5.2f}x   ({min(own):.1f} to {max(own):.1f})")


if __name__ == "__main__":
    main()
