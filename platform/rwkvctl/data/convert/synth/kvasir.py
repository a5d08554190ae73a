"""Kvasir-SEG: JPEG images, JPEG masks, and a table of boxes that lists every image."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from rwkvctl.data.convert.synth.output import save, write
from rwkvctl.data.convert.synth.polyps import polyp

FOLDER = "Kvasir-SEG"


def write_jpg(folder: Path, n: int, size: int, seed: int) -> None:
    """`images/<id>.jpg`, `masks/<id>.jpg` (quality 75, mode L or RGB) and `kavsir_bboxes.json`."""
    root, boxes = folder / FOLDER, {}
    for number in range(n):
        rng = np.random.default_rng([seed, 3, number])
        name = "cju" + "".join(rng.choice(list("0123456789abcdefghijklmnopqrstuvwxyz"), 22))
        shape = (size * 4 // 5, size) if number % 3 else (size, size * 9 // 10)
        image, mask = polyp([seed, 3, number], shape)
        save(root / "images" / f"{name}.jpg", image, quality=92)
        save(root / "masks" / f"{name}.jpg", np.dstack([mask] * 3) if number % 2 else mask, quality=75)
        y, x = (axis.tolist() for axis in np.nonzero(mask))
        box = {"label": "polyp", "xmin": min(x), "ymin": min(y), "xmax": max(x), "ymax": max(y)}
        boxes[name] = {"height": shape[0], "width": shape[1], "bbox": [box]}
    write(root / "kavsir_bboxes.json", json.dumps(boxes))


def trap_boxes(folder: Path) -> Path:
    """An image that the table of boxes does not list, in exchange for one that it does."""
    image = min((folder / FOLDER / "images").iterdir())
    other = "cju" + "0" * 22
    (folder / FOLDER / "masks" / image.name).rename(folder / FOLDER / "masks" / f"{other}.jpg")
    return image.rename(image.with_stem(other))


def trap_grey(folder: Path) -> Path:
    """A mask that is half grey: no binary mask."""
    path = min((folder / FOLDER / "masks").iterdir())
    pixels = np.full((48, 48), 120, np.uint8)
    save(path, pixels, quality=75)
    return path
