"""Masks of several classes as people save them: grey steps, colours, palettes, ids, numbers of objects, JPEG."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from rwkvctl.data.convert.synth.output import Array, encode, save, write
from rwkvctl.data.convert.synth.pair_samples import Truth, class_ids, sample

LABEL_MAP = """# label:color_rgb:parts:actions
background:0,0,0::
cup:128,0,0::
disc:0,128,0::
ignore:224,224,192::
"""


def write_grey(folder: Path, n: int, size: int, seed: int) -> Truth:
    """`scan/N.png` and `scan_label/N.png` with the values 0, 85, 170 and 255."""
    truth = Truth()
    for number in range(1, n + 1):
        image, ids = _sample(number, size, seed, 3)
        save(folder / "scan" / f"{number}.png", image)
        save(folder / "scan_label" / f"{number}.png", ids * 85)
        truth[f"scan/{number}.png"] = ids
    return truth


def write_colour(folder: Path, n: int, size: int, seed: int) -> Truth:
    """`photos/plant N.jpg` and `annotations/plant N.png` in black, green and orange; in every other one the background
    is transparent."""
    truth, colours = Truth(), np.array([[0, 0, 0], [0, 255, 0], [255, 128, 0]], np.uint8)
    for number in range(1, n + 1):
        image, ids = _sample(number, size, seed, 2)
        save(folder / "photos" / f"plant {number}.jpg", image)
        mask = colours[ids]
        if number % 2:
            mask = np.dstack([mask, np.where(ids > 0, 255, 0).astype(np.uint8)])
        save(folder / "annotations" / f"plant {number}.png", mask)
        truth[f"photos/plant {number}.jpg"] = ids
    return truth


def write_palette(folder: Path, n: int, size: int, seed: int) -> Truth:
    """As Pascal VOC and CVAT's export of it: `JPEGImages/`, `SegmentationClass/` with a palette and index 255 around
    objects, and labelmap.txt."""
    truth = Truth()
    palette = np.zeros((256, 3), np.uint8)
    palette[[1, 2, 255]] = [[128, 0, 0], [0, 128, 0], [224, 224, 192]]
    for number in range(1, n + 1):
        image, ids = _sample(number, size, seed, 2)
        ids[np.roll(ids, 1, axis=0) != ids] = 255
        mask = Image.fromarray(ids)
        mask.putpalette(palette.tobytes())
        save(folder / "JPEGImages" / f"2019_{number:06d}.jpg", image)
        path = folder / "SegmentationClass" / f"2019_{number:06d}.png"
        path.parent.mkdir(exist_ok=True)
        mask.save(path)
        truth[f"JPEGImages/2019_{number:06d}.jpg"] = ids
    write(folder / "labelmap.txt", LABEL_MAP)
    return truth


def write_ids(folder: Path, n: int, size: int, seed: int) -> Truth:
    """`case-N.jpg` and `case-N_labels.png` beside it, with the ids 0 to 3, which look black; only the last has a 3."""
    truth = Truth()
    for number in range(1, n + 1):
        image, ids = _sample(number, size, seed, 3 if number == n else 2)
        save(folder / f"case-{number}.jpg", image)
        save(folder / f"case-{number}_labels.png", ids)
        truth[f"case-{number}.jpg"] = ids
    return truth


def write_objects(folder: Path, n: int, size: int, seed: int) -> Truth:
    """`raw/tile_N.png` and `gt/tile_N.tif`, whose 16-bit values count the objects of one class from 1 on."""
    truth = Truth()
    for number in range(1, n + 1):
        image, ids = _sample(number, size, seed, 1)
        height, width = ids.shape
        rows, columns = np.indices(ids.shape)
        cells = rows * (number + 3) // height * (number + 2) + columns * (number + 2) // width + 1
        values = np.unique(np.where(ids, cells, 0), return_inverse=True)[1].reshape(ids.shape).astype(np.uint16)
        save(folder / "raw" / f"tile_{number}.png", image)
        save(folder / "gt" / f"tile_{number}.tif", values)
        truth[f"raw/tile_{number}.png"] = ids
    return truth


def write_jpegmasks(folder: Path, n: int, size: int, seed: int) -> Truth:
    """`x-ray/N.png` and `mask/N.jpg`: grey values that JPEG has moved by a few steps."""
    truth = Truth()
    for number in range(1, n + 1):
        image, ids = _sample(number, size, seed, 2)
        save(folder / "x-ray" / f"{number}.png", image)
        levels = np.array([0, 128, 255], np.uint8)[ids]
        write(folder / "mask" / f"{number}.jpg", encode(levels, "JPEG", quality=95))
        truth[f"x-ray/{number}.png"] = ids
    return truth


def _sample(number: int, size: int, seed: int, classes: int) -> tuple[Array, Array]:
    """An image (H, W, 3) and class ids (H, W)."""
    image, masks = sample(number, size, seed, classes)
    return image, class_ids(masks)
