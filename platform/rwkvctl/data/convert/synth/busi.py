"""BUSI: breast ultrasound with the many encodings of its masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from rwkvctl.data.convert.synth.output import Array, save
from rwkvctl.data.convert.synth.phantom import blobs, paint

FOLDER = "Dataset_BUSI_with_GT"


def write_kaggle(folder: Path, n: int, size: int, seed: int) -> None:
    """`benign|malignant|normal/<class> (N).png` and their masks: about 5 : 3 : 2 of `n` images."""
    root = folder / FOLDER
    normal, malignant = max(1, n // 5), max(1, 3 * n // 10)
    shape = (size * 4 // 5, size)
    for kind, count in (("benign", max(4, n - normal - malignant)), ("malignant", malignant), ("normal", normal)):
        for number in range(1, count + 1):
            rng = np.random.default_rng([seed, len(kind), number])
            lesion = blobs(rng, shape) & (kind != "normal")
            grey = 0.5 if kind == "benign" else 0.6
            levels = [[grey] * 3, [0.15 if kind == "benign" else 0.22] * 3]
            image = paint(rng, lesion.astype(np.uint8), levels, shading=0.15, noise=0.3)
            stem = f"{kind} ({number})"
            save(root / kind / f"{stem}.png", np.repeat(image[..., :1], 3, axis=-1))
            save(root / kind / f"{stem}_mask.png", _as_stored(lesion, kind, number))
    _add_second_mask(root, shape, seed)


def _as_stored(mask: Array, kind: str, number: int) -> Array:
    """Mode RGB for normal images, RGBA for one, RGB for some, 1 for most of the others, L for the rest."""
    grey = mask.astype(np.uint8) * 255
    if kind == "malignant" and number == 1:
        return np.dstack([grey, grey, grey, np.full_like(grey, 255)])
    if kind == "normal" or number % 4 == 3:
        return np.dstack([grey] * 3)
    return grey if number % 4 == 2 else mask


def _add_second_mask(root: Path, shape: tuple[int, int], seed: int) -> None:
    """`benign (4)` has a second lesion in a file of its own."""
    second = blobs(np.random.default_rng([seed, 99]), shape)
    save(root / "benign" / "benign (4)_mask_1.png", second)


def trap_size(folder: Path) -> Path:
    """A mask of another shape than its image."""
    path = folder / FOLDER / "benign" / "benign (4)_mask_1.png"
    save(path, np.zeros((20, 48), bool))
    return path


def trap_transparent(folder: Path) -> Path:
    """An RGBA mask of which nothing is opaque."""
    path = folder / FOLDER / "malignant" / "malignant (1)_mask.png"
    save(path, np.zeros((38, 48, 4), np.uint8))
    return path


def trap_unpaired(folder: Path) -> Path:
    """An image without its mask."""
    (folder / FOLDER / "benign" / "benign (2)_mask.png").unlink()
    return folder / FOLDER / "benign" / "benign (2).png"


def trap_duplicate(folder: Path) -> Path:
    """A benign image that is a malignant one as well."""
    path = folder / FOLDER / "malignant" / "malignant (2).png"
    path.write_bytes((folder / FOLDER / "benign" / "benign (1).png").read_bytes())
    return path
