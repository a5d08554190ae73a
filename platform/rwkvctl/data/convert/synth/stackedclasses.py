"""All images in one array and their classes in another, as MedMNIST comes."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from rwkvctl.data.convert.synth import phantom
from rwkvctl.data.convert.synth.output import Array, write
from rwkvctl.data.convert.synth.stacked import parts_of, save_npy

_CLASSES = 3


def write_npz(folder: Path, n: int, size: int, seed: int) -> None:
    """`mnist.npz`: train_images (N, H, W, 3) of bytes, train_labels (N, 1), and those of val and test."""
    arrays: dict[str, Array] = {}
    for part, numbers in parts_of(n).items():
        images, labels = _drawn(numbers, size, seed)
        arrays |= {f"{part}_images": images, f"{part}_labels": labels[:, None].astype(np.uint8)}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    write(folder / "mnist.npz", buffer.getvalue())


def write_npy(folder: Path, n: int, size: int, seed: int) -> None:
    """`X.npy` (N, H, W) of bytes and `y.npy` (N, 3), a 1 for the class of each."""
    images, labels = _drawn(range(n), size, seed)
    save_npy(folder / "X.npy", images[..., 0])
    save_npy(folder / "y.npy", np.eye(_CLASSES)[labels])


def _drawn(numbers: range, size: int, seed: int) -> tuple[Array, Array]:
    """Images (N, H, W, 3) and the class of each."""
    labels = np.array([number % _CLASSES for number in numbers])
    images = [
        phantom.texture(np.random.default_rng([seed, number]), label, _CLASSES, size)
        for number, label in zip(numbers, labels, strict=True)
    ]
    return np.stack(images), labels
