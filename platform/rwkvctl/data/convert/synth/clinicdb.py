"""CVC-ClinicDB: numbered frames of 29 sequences, 4 : 3."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np

from rwkvctl.data.convert.synth.output import save, write
from rwkvctl.data.convert.synth.polyps import polyp

FOLDER = "CVC-ClinicDB"
STARTS = (1, 26, 51, 68, 79, 104, 127, 152, 178, 200, 206, 228)
"""First frames of sequences; the next frames follow until `n` are written."""


def numbers(n: int) -> list[int]:
    """`n` frame numbers, three a sequence as long as there are sequences."""
    frames = sorted(start + i for i, start in itertools.product(range(3), STARTS))
    return frames[:n] + list(range(240, 240 + n - len(frames)))


def write_tif(folder: Path, n: int, size: int, seed: int) -> None:
    """`Original/N.tif` and `Ground Truth/N.tif`."""
    _write(folder / FOLDER, ".tif", n, size, seed)


def write_png(folder: Path, n: int, size: int, seed: int) -> None:
    """The Kaggle copy: the same frames as `PNG/` and as `TIF/`, with a table."""
    rows = [",frame_id,sequence_id,png_image_path,png_mask_path,tif_image_path,tif_mask_path"]
    for kind in ("png", "tif"):
        _write(folder / kind.upper(), f".{kind}", n, size, seed)
    for row, number in enumerate(numbers(n)):
        sequence = sum(start <= number for start in STARTS)
        paths = [f"{kind.upper()}/{name}/{number}.{kind}" for kind in ("png", "tif") for name in _FOLDERS]
        rows.append(",".join([str(row), str(number), str(sequence), *paths]))
    write(folder / "metadata.csv", "\n".join(rows) + "\n")


def write_jpg(folder: Path, n: int, size: int, seed: int) -> None:
    """Re-encoded copies: `images/N.jpg` and `masks/N.jpg`, whose masks are grey at the edges."""
    for number in numbers(n):
        image, mask = polyp([seed, number], (size, size))
        save(folder / FOLDER / "images" / f"{number}.jpg", image, quality=92)
        save(folder / FOLDER / "masks" / f"{number}.jpg", mask, quality=75)


_FOLDERS = ("Original", "Ground Truth")


def _write(root: Path, extension: str, n: int, size: int, seed: int) -> None:
    for number in numbers(n):
        for name, pixels in zip(_FOLDERS, polyp([seed, number], (size * 3 // 4, size)), strict=True):
            save(root / name / f"{number}{extension}", pixels)


def trap_ids(folder: Path) -> Path:
    """A mask that holds class ids and a stray value instead of {0, 255}."""
    path = next(p for p in sorted(folder.rglob("*")) if p.parent.name in ("Ground Truth", "masks") and p.is_file())
    pixels = np.zeros((36, 48), np.uint8)
    pixels[:9] = 7
    save(path.with_suffix(".png"), pixels)
    path.with_suffix(".png").replace(path)
    return path


def trap_number(folder: Path) -> Path:
    """A frame with a number that ClinicDB does not have."""
    for file in [path for path in folder.rglob("1.*") if path.is_file()]:
        path = file.with_stem("613")
        path.write_bytes(file.read_bytes())
    return path
