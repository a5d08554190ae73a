"""The generic form `imagetable`: images in two folders, and tables of what they show, as ISIC's archives have them."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from rwkvctl.data.convert.synth import phantom

_CLASSES = ("nv", "mel", "bcc")


def write_column(folder: Path, n: int, size: int, seed: int) -> None:
    """`metadata.csv` with image_id, dx and lesion_id, two images a lesion; files in two folders, as HAM10000."""
    names = _write_images(folder, n, size, seed)
    rows = [[f"HAM_{i // 2:07d}", name, _CLASSES[label], 30 + i] for i, (name, label) in enumerate(names)]
    _write(folder / "metadata.csv", ["lesion_id", "image_id", "dx", "age"], rows)


def write_onehot(folder: Path, n: int, size: int, seed: int) -> None:
    """A column a class, one of which is empty, and lesions in a table of their own, as ISIC 2019."""
    names = _write_images(folder, n, size, seed)
    headings = ["image", *(name.upper() for name in _CLASSES), "UNK"]
    rows = [[name, *(float(label == k) for k in range(len(headings) - 1))] for name, label in names]
    _write(folder / "Training_GroundTruth.csv", headings, rows)
    lesions = [[name, 30 + i, f"HAM_{i // 2:07d}"] for i, (name, _) in enumerate(names)]
    _write(folder / "Training_Metadata.csv", ["image", "age_approx", "lesion_id"], lesions)


def trap_label(folder: Path) -> Path:
    """A second row for the first image, which says another class."""
    path = next(path for path in sorted(folder.glob("*.csv")) if "Metadata" not in path.name)
    first, *rows = path.read_text().splitlines()
    cells = rows[0].split(",")
    place = first.split(",").index("dx") if "dx" in first else 1
    if "dx" in first:
        cells[place] = "mel" if cells[place] != "mel" else "nv"
    else:
        cells[1:4] = cells[2:4] + cells[1:2]
    path.write_text("\n".join([first, *rows, ",".join(cells)]) + "\n")
    return path


def _write_images(folder: Path, n: int, size: int, seed: int) -> list[tuple[str, int]]:
    """Names and class numbers of the images, in the order of their numbers."""
    phantom.write_textures(folder / "classes", len(_CLASSES), max(3, n // len(_CLASSES)), size, seed)
    files = [
        (path, label)
        for label, own in enumerate(sorted((folder / "classes" / "train").iterdir()))
        for path in sorted(own.iterdir())
    ]
    names = []
    for number, (path, label) in enumerate(files):
        target = folder / f"images_part_{1 + number % 2}" / f"ISIC_{24306 + number:07d}.jpg"
        target.parent.mkdir(exist_ok=True)
        path.rename(target)
        names.append((target.stem, label))
    shutil.rmtree(folder / "classes")
    return names


def _write(path: Path, headings: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([headings, *rows])
