"""All images in one array and all masks in another, as MALUNet, VM-UNet and research code save them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from rwkvctl.data.convert.synth.output import Array, save_h5, write
from rwkvctl.data.convert.synth.pair_samples import sample

OPTIONS = {"npz": "--range 0,1"}


def write_npy(folder: Path, n: int, size: int, seed: int) -> None:
    """`data_train.npy` (N, H, W, 3) of bytes and `mask_train.npy` (N, H, W) of 0 and 255, the same for val and test."""
    for part, numbers in parts_of(n).items():
        images, masks = _drawn(numbers, size, seed)
        save_npy(folder / f"data_{part}.npy", images)
        save_npy(folder / f"mask_{part}.npy", masks * np.uint8(255))


def write_npz(folder: Path, n: int, size: int, seed: int) -> None:
    """`set.npz`: images (N, H, W, 3) from 0 to 1 and masks (N, H, W, 1) of 0 and 1, both floats, and `patient_ids`."""
    images, masks = _drawn(range(n), size, seed)
    buffer = io.BytesIO()
    ids = np.array([f"p{number // 2:02d}" for number in range(n)])
    unit = images.astype(np.float32) / 255
    np.savez_compressed(buffer, images=unit, masks=masks[..., None].astype(np.float32), patient_ids=ids)
    write(folder / "set.npz", buffer.getvalue())


def write_hdf5(folder: Path, n: int, size: int, seed: int) -> None:
    """`set.h5`: train/images (N, 3, H, W) of bytes and train/masks (N, 2, H, W), a plane a class; val and test too."""
    arrays: dict[str, Array] = {}
    for part, numbers in parts_of(n).items():
        images, masks = _drawn(numbers, size, seed)
        arrays[f"{part}/images"] = images.transpose(0, 3, 1, 2)
        arrays[f"{part}/masks"] = np.stack([1 - masks, masks], axis=1)
    save_h5(folder / "set.h5", **arrays)


def parts_of(n: int) -> dict[str, range]:
    """The numbers of the samples of each part."""
    held_out = max(1, n // 6)
    return {
        "train": range(n - 2 * held_out),
        "val": range(n - 2 * held_out, n - held_out),
        "test": range(n - held_out, n),
    }


def _drawn(numbers: range, size: int, seed: int) -> tuple[Array, Array]:
    """Images (N, H, W, 3) of bytes and masks (N, H, W) of 0 and 1."""
    pairs = [sample(number, size, seed) for number in numbers]
    return np.stack([image for image, _ in pairs]), np.stack([masks[0].astype(np.uint8) for _, masks in pairs])


def save_npy(path: Path, array: Array) -> None:
    """The same bytes for the same content."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    write(path, buffer.getvalue())
