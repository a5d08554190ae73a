"""FUGC 2025: cervix ultrasound, few labelled images, many unlabelled ones with the same numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from rwkvctl.data.convert.synth.output import Array, save
from rwkvctl.data.convert.synth.phantom import paint

FOLDER = Path("FUGC (Dataset)") / "dataset"


def write_zenodo(folder: Path, n: int, size: int, seed: int) -> None:
    """`n` labelled, 2 n unlabelled, n / 2 for validation and as many for test; every part starts at 0001."""
    root = folder / FOLDER
    counts = {"train/labeled_data": n, "train/unlabeled_data": 2 * n, "val": max(1, n // 2), "test": max(1, n // 2)}
    for order, (part, count) in enumerate(counts.items()):
        for number in range(1, count + 1):
            rng = np.random.default_rng([seed, 8, order, number])
            ids = _lips(rng, (size * 336 // 544, size))
            image = paint(rng, ids, [[0.2] * 3, [0.6] * 3, [0.45] * 3], shading=0.2, noise=0.2)
            save(root / part / "images" / f"{number:04d}.png", np.repeat(image[..., :1], 3, axis=-1))
            if "unlabeled" not in part:
                save(root / part / "labels" / f"{number:04d}.png", ids)


def _lips(rng: np.random.Generator, shape: tuple[int, int]) -> Array:
    """Class ids (H, W): the anterior lip (1) above the posterior one (2), a canal between them."""
    height, width = shape
    y, x = np.mgrid[:height, :width] / np.array([height, width])[:, None, None]
    centre, tilt = rng.uniform(0.45, 0.55), rng.uniform(-0.2, 0.2)
    axis = y - centre - tilt * (x - 0.5)
    long = np.abs(x - rng.uniform(0.4, 0.6)) < rng.uniform(0.25, 0.35)
    thick = rng.uniform(0.15, 0.22)
    ids = np.zeros(shape, np.uint8)
    ids[long & (axis < -0.03) & (axis > -0.03 - thick)] = 1
    ids[long & (axis > 0.03) & (axis < 0.03 + thick)] = 2
    return ids


def trap_value_3(folder: Path) -> Path:
    """A label beyond the two lips."""
    path = folder / FOLDER / "val" / "labels" / "0001.png"
    label = np.array(Image.open(path))
    label[:2] = 3
    save(path, label)
    return path


def trap_unpaired(folder: Path) -> Path:
    """A labelled image without its label."""
    (folder / FOLDER / "train" / "labeled_data" / "labels" / "0002.png").unlink()
    return folder / FOLDER / "train" / "labeled_data" / "images" / "0002.png"
