"""CVC-ColonDB: the mirrors' PNG folders, and the original release's flat BMPs."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from rwkvctl.data.convert.synth.output import save
from rwkvctl.data.convert.synth.polyps import polyp

FOLDER = "CVC-ColonDB"


def write_png(folder: Path, n: int, size: int, seed: int) -> None:
    """`images/N.png` and `masks/N.png`."""
    for number in range(1, n + 1):
        image, mask = polyp([seed, 2, number], (size * 500 // 574, size))
        save(folder / FOLDER / "images" / f"{number}.png", image)
        save(folder / FOLDER / "masks" / f"{number}.png", mask)


def write_bmp(folder: Path, n: int, size: int, seed: int) -> None:
    """`N.bmp`, its mask `pN.bmp` and its contour `cN.bmp`, in one folder."""
    for number in range(1, n + 1):
        image, mask = polyp([seed, 2, number], (size * 500 // 574, size))
        inside = mask[1:-1, 1:-1] & mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:]
        save(folder / FOLDER / f"{number}.bmp", image)
        save(folder / FOLDER / f"p{number}.bmp", mask)
        save(folder / FOLDER / f"c{number}.bmp", mask - np.pad(inside, 1))


def trap_kvasir(folder: Path) -> Path:
    """An image of Kvasir-SEG among those of ColonDB, as in PraNet's training set."""
    image, mask = polyp([1], (40, 48))
    name = "cju0qkwl35piu0993l0dewei2.png"
    root = folder / FOLDER
    flat = not (root / "images").is_dir()
    save(root / ("" if flat else "masks") / (f"p{name}" if flat else name), mask)
    path = root / ("" if flat else "images") / name
    save(path, image)
    return path
