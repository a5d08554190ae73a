"""Folders as people have them for the format `pairs`: no two are laid out alike, none has `images/` and `masks/`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from rwkvctl.data.convert.synth.output import Array, save, write
from rwkvctl.data.convert.synth.phantom import blobs, paint

OPTIONS = {
    "suffix": "--images 'Bilder/*.tif' --masks 'Masken/*_maske.gif'",
    "annotators": "--images 'Image_*.jpg' --masks 'Image_*_{annotator}.png' --annotator 1stHO",
    "instances": "--images '{id}/images/{id}.png' --masks '{id}/masks/{n}.png'",
    "classes": "--images 'foto/*' --masks 'organ/*_{class}.png' --classes background,heart,lung",
    "parts": "--images '*/Fotos/*' --masks '*/Ground truth/*' --split-from folders",
}
"""By form, what pairs its files."""
COLOURS = [[0.3, 0.25, 0.25], [0.65, 0.5, 0.4], [0.4, 0.5, 0.7]]


def write_suffix(folder: Path, n: int, size: int, seed: int) -> None:
    """`Bilder/Größe N.tif` and `Masken/Größe N_maske.gif`, in a wrapper folder, beside a preview that is neither."""
    top = folder / "Augen 2019"
    for number in range(1, n + 1):
        image, (mask,) = _sample(number, size, seed)
        save(top / "Bilder" / f"Größe {number}.tif", image)
        save(top / "Masken" / f"Größe {number}_maske.gif", mask.astype(np.uint8) * 255)
    save(top / "Vorschau.png", image[::2, ::2])
    write(top / "Bilder" / "liesmich.txt", "Bilder von 2019")


def write_annotators(folder: Path, n: int, size: int, seed: int) -> None:
    """`Image_01L.jpg`, `Image_01R.jpg` and masks by two people beside them, `Image_01L_1stHO.png`, as CHASE_DB1 has."""
    for number in range(n):
        image, (mask,) = _sample(number, size, seed)
        name = f"Image_{number // 2 + 1:02d}{'LR'[number % 2]}"
        save(folder / f"{name}.jpg", image)
        save(folder / f"{name}_1stHO.png", mask)
        save(folder / f"{name}_2ndHO.png", np.roll(mask, 2, axis=1))


def write_instances(folder: Path, n: int, size: int, seed: int) -> None:
    """`ID/images/ID.png` and an object a file in `ID/masks/`, under names of their own, as the nuclei of 2018 have."""
    for number in range(n):
        image, objects = _sample(number, size, seed, classes=2)
        name = f"{seed:02x}{number * 7919 + 4096:06x}"
        save(folder / name / "images" / f"{name}.png", image)
        for which, mask in enumerate(objects):
            save(folder / name / "masks" / f"{name[::-1]}{which}.png", mask.astype(np.uint8) * 255)


def write_classes(folder: Path, n: int, size: int, seed: int) -> None:
    """`foto/case_N.jpg` and a file a class, `organ/case_N_heart.png`; every third image has no lung."""
    for number in range(1, n + 1):
        image, masks = _sample(number, size, seed, classes=2)
        save(folder / "foto" / f"case_{number}.jpg", image)
        for name, mask in list(zip(("heart", "lung"), masks, strict=True))[: 1 + (number % 3 > 0)]:
            save(folder / "organ" / f"case_{number}_{name}.png", mask.astype(np.uint8) * 255)


def write_parts(folder: Path, n: int, size: int, seed: int) -> None:
    """`Training/Fotos/N.jpg` and `Training/Ground truth/N.png`, the same under `Validate/` and `TEST/`; each counts
    from 1."""
    parts = {"Training": n - 2 * (n // 4), "Validate": n // 4, "TEST": n // 4}
    for salt, (part, count) in enumerate(parts.items()):
        for number in range(1, count + 1):
            image, (mask,) = _sample(number + 1000 * salt, size, seed)
            save(folder / part / "Fotos" / f"{number}.jpg", image)
            save(folder / part / "Ground truth" / f"{number}.png", mask)


def trap_unpaired(folder: Path) -> Path:
    """The first mask of the first image is gone."""
    words = ("_maske.", "_1stHO.", "/masks/", "_heart.", "/Ground truth/")
    first = min(path for path in folder.rglob("*.*") if any(word in path.as_posix() for word in words))
    first.unlink()
    return first


def _sample(number: int, size: int, seed: int, classes: int = 1) -> tuple[Array, list[Array]]:
    """An image (H, W, 3) and the mask (H, W) of each class."""
    rng = np.random.default_rng([seed, number])
    shape = (size * 4 // 5, size)
    masks = [blobs(rng, shape) for _ in range(classes)]
    ids = np.zeros(shape, np.uint8)
    for class_id, mask in enumerate(masks, 1):
        ids[mask] = class_id
    return paint(rng, ids, COLOURS), masks
