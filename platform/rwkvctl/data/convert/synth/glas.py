"""GlaS: histology BMPs, masks of numbered glands, a table with spaces after its commas."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from rwkvctl.data.convert.synth.output import Array, save, write
from rwkvctl.data.convert.synth.phantom import paint

FOLDER = "Warwick QU Dataset (Released 2016_07_08)"


def write_bmp(folder: Path, n: int, size: int, seed: int) -> None:
    """`train_N.bmp`, `testA_N.bmp`, `testB_N.bmp` with `_anno.bmp` and `Grade.csv`: `n` to train on, 3 n / 4 tests."""
    root = folder / FOLDER
    rows = ["name, patient ID, grade (GlaS), grade (Sirinukunwattana et al. 2015)"]
    for order, (part, count) in enumerate({"testA": max(1, n // 2), "testB": max(1, n // 4), "train": n}.items()):
        for number in range(1, count + 1):
            rng = np.random.default_rng([seed, 5, order, number])
            benign = bool(rng.random() < 0.5)
            instances = _glands(rng, (size * 522 // 775, size))
            image = paint(rng, np.minimum(instances, 1), [[0.75, 0.5, 0.7], [0.55, 0.25, 0.55]])
            save(root / f"{part}_{number}.bmp", image)
            save(root / f"{part}_{number}_anno.bmp", instances)
            patient = 1 + (5 * order + number) % 16
            grade = "benign, adenomatous" if benign else "malignant, moderately differentiated"
            rows.append(f"{part}_{number}, {patient}, {grade}")
    write(root / "Grade.csv", "\n".join(rows) + "\n")


def _glands(rng: np.random.Generator, shape: tuple[int, int]) -> Array:
    """Instance numbers (H, W): up to six disks that do not touch, 0 between them."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    found = np.zeros(shape, np.uint8)
    for _ in range(12):
        radius = rng.uniform(0.1, 0.2) * shape[0]
        distance = np.hypot(y - rng.uniform(0, shape[0]), x - rng.uniform(0, shape[1]))
        if not found[distance < radius + 2].any() and found.max() < 6:
            found[distance < radius] = found.max() + 1
    return found


def trap_grade(folder: Path) -> Path:
    """An image that Grade.csv does not list."""
    path = folder / FOLDER / "Grade.csv"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if not line.startswith("train_1,")))
    return path


def trap_unpaired(folder: Path) -> Path:
    """An image without its annotation."""
    (folder / FOLDER / "testB_1_anno.bmp").unlink()
    return folder / FOLDER / "testB_1.bmp"
