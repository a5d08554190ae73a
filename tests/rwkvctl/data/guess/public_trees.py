"""Small files laid out as a well-known download, and the class ids that its masks stand for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

Draw = Callable[[np.random.Generator, Path], np.ndarray | None]
"""Write a file; class ids (H, W) of a mask."""
SIZE = 48


def photo(rng: np.random.Generator, path: Path) -> None:
    coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    coarse.resize((SIZE, SIZE), Image.Resampling.BICUBIC).save(path)


def depth(rng: np.random.Generator, path: Path) -> None:
    coarse = Image.fromarray(rng.integers(0, 256, (6, 6), dtype=np.uint8))
    coarse.resize((SIZE, SIZE), Image.Resampling.BICUBIC).save(path)


def boxes(rng: np.random.Generator, classes: int = 1) -> np.ndarray:
    """Ids (H, W): boxes of the classes 1, 2, ... on nothing."""
    ids = np.zeros((SIZE, SIZE), np.uint8)
    for number in range(classes):
        top, left = rng.integers(0, 6, 2) + 12 * number
        ids[top : top + 9, left : left + 9] = number + 1
    return ids


def mask(rng: np.random.Generator, path: Path) -> np.ndarray:
    ids = boxes(rng)
    Image.fromarray(ids * 255).save(path)
    return ids


def beside(rng: np.random.Generator, path: Path) -> np.ndarray:
    """Where no box of `mask` is."""
    ids = np.roll(boxes(rng), 24, axis=(0, 1))
    Image.fromarray(ids * 255).save(path)
    return ids


def third(rng: np.random.Generator, path: Path) -> np.ndarray:
    """Where no box of the two is."""
    ids = np.roll(boxes(rng), 24, axis=0)
    Image.fromarray(ids * 255).save(path)
    return ids


def around(rng: np.random.Generator, path: Path) -> np.ndarray:
    """Around every box of `mask`."""
    ids = np.zeros((SIZE, SIZE), np.uint8)
    ids[:30, : 30 + rng.integers(9)] = 1
    Image.fromarray(ids * 255).save(path)
    return ids


def classes(rng: np.random.Generator, path: Path) -> np.ndarray:
    ids = boxes(rng, 3)
    Image.fromarray(np.array([0, 7, 8, 26], np.uint8)[ids]).save(path)
    return ids


def cup_and_disc(rng: np.random.Generator, path: Path) -> np.ndarray:
    """Grey discs with black cups on white, as REFUGE has them; ids in the order of the values."""
    ids = boxes(rng, 2)
    ids[40:44, 4:9] = 1
    Image.fromarray(np.array([255, 0, 128], np.uint8)[ids]).save(path)
    return ids


def objects(rng: np.random.Generator, path: Path) -> None:
    Image.fromarray(np.array([0, 7001, 8000, 26012], np.uint16)[boxes(rng, 3)]).save(path)


def colours(rng: np.random.Generator, path: Path) -> None:
    Image.fromarray(np.array([[0, 0, 0], [128, 64, 128], [220, 20, 60]], np.uint8)[boxes(rng, 2)]).save(path)


def palette(rng: np.random.Generator, path: Path) -> np.ndarray:
    ids = boxes(rng, 2)
    shown = Image.fromarray(ids)
    shown.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    shown.save(path)
    return ids


def field(rng: np.random.Generator, path: Path) -> None:
    y, x = np.mgrid[:SIZE, :SIZE] - SIZE / 2
    Image.fromarray(((x**2 + y**2 < 22**2) * 255).astype(np.uint8)).save(path)


def text(rng: np.random.Generator, path: Path) -> None:
    path.write_text("text")


class Files(NamedTuple):
    """`{n}` of the path is each of the numbers. of: the images whose masks these are; layer: the class of such masks,
    0 for those that have class ids inside."""

    path: str
    numbers: Sequence[int]
    draw: Draw
    of: str = ""
    layer: int = 0


class Layout(NamedTuple):
    files: list[Files]
    options: str
    question: str = ""


def pair(image: str, mask_path: str, numbers: Sequence[int], draw: Draw = mask) -> list[Files]:
    return [Files(image, numbers, photo), Files(mask_path, numbers, draw, of=image)]


def drawn(layout: Layout, tree: Path) -> dict[str, np.ndarray]:
    """Class ids (H, W) by the path of the image that they are of."""
    rng, truth = np.random.default_rng(0), dict[str, np.ndarray]()
    for file in layout.files:
        for number in file.numbers:
            path = tree / file.path.format(n=number)
            path.parent.mkdir(parents=True, exist_ok=True)
            ids = file.draw(rng, path)
            if file.of and ids is not None:
                known = truth.setdefault(file.of.format(n=number), np.zeros_like(ids))
                known[ids > 0] = file.layer or ids[ids > 0]
    return truth
