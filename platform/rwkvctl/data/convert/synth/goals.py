"""GOALS 2022: OCT layers whose masks are grey values, 0 being a layer and 255 the background."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from rwkvctl.data.convert.synth.output import Array, save, write
from rwkvctl.data.convert.synth.phantom import paint, smooth_noise

GREYS = np.array([255, 0, 80, 160], np.uint8)
"""By class: other, RNFL, GCIPL, choroid."""


def write_full(folder: Path, n: int, size: int, seed: int) -> None:
    """All masks: half of `n` in `Train`, a quarter each in `Validation` and `Test`."""
    _write(folder, n, size, seed, masked=("Train", "Validation", "Test"))


def write_public(folder: Path, n: int, size: int, seed: int) -> None:
    """What the challenge's page gives: masks for the first hundred numbers only."""
    _write(folder, n, size, seed, masked=("Train",))


def _write(folder: Path, n: int, size: int, seed: int, masked: tuple[str, ...]) -> None:
    shape = (size * 8 // 11, size)
    for part, first in (("Train", 1), ("Validation", 101), ("Test", 201)):
        root = folder / f"GOALS2022-{part}" / part
        for number in range(first, first + (max(5, n // 2) if part == "Train" else max(1, n // 4))):
            rng = np.random.default_rng([seed, 6, number])
            ids = _layers(rng, shape)
            grey = paint(rng, ids, [[0.12] * 3, [0.75] * 3, [0.45] * 3, [0.6] * 3], shading=0.15, noise=0.15)
            image = np.repeat(grey[..., :1], 3, axis=-1)
            save(root / "Image" / f"{number:04d}.png", image)
            if part in masked:
                save(root / "Layer_Masks" / f"{number:04d}.png", GREYS[ids])
                image[ids > 0] = [255, 0, 0]
                save(root / "Layer_show" / f"{number:04d}.png", image)
    write(folder / "GOALS2022-Train" / "Train" / "License.pdf", "%PDF-1.4\n%%EOF\n")


def _layers(rng: np.random.Generator, shape: tuple[int, int]) -> Array:
    """Class ids (H, W): two bands one on the other, and a third further below, all wavy."""
    height, width = shape
    depth = np.arange(height)[:, None] / height
    wave = 0.05 * smooth_noise(rng, (1, width), width // 2)[0]
    top, rnfl, gcipl, choroid = 0.25 + wave, rng.uniform(0.1, 0.18), rng.uniform(0.1, 0.15), rng.uniform(0.12, 0.2)
    ids = np.zeros(shape, np.uint8)
    ids[(depth > top) & (depth <= top + rnfl)] = 1
    ids[(depth > top + rnfl) & (depth <= top + rnfl + gcipl)] = 2
    ids[(depth > top + 0.42) & (depth <= top + 0.42 + choroid)] = 3
    return ids


def trap_grey_79(folder: Path) -> Path:
    """A mask with a value between those of the layers, as resampling leaves them."""
    path = folder / "GOALS2022-Train" / "Train" / "Layer_Masks" / "0001.png"
    mask = np.array(Image.open(path))
    mask[mask == 80] = 79
    save(path, mask)
    return path


def trap_range(folder: Path) -> Path:
    """An image with a number beyond 300."""
    path = folder / "GOALS2022-Test" / "Test" / "Image" / "0301.png"
    path.write_bytes((path.parent / "0201.png").read_bytes())
    return path
