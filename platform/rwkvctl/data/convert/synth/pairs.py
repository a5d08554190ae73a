"""Folders as people have them for the format `pairs`: no two are laid out alike, none has `images/` and `masks/`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from rwkvctl.data.convert.synth import volume_pairs
from rwkvctl.data.convert.synth.folder_kinds import (
    write_beginnings,
    write_beside,
    write_cases,
    write_csv,
    write_endings,
    write_junk,
    write_languages,
    write_metadata,
)
from rwkvctl.data.convert.synth.mask_kinds import (
    write_colour,
    write_grey,
    write_ids,
    write_jpegmasks,
    write_objects,
    write_palette,
)
from rwkvctl.data.convert.synth.output import save, write
from rwkvctl.data.convert.synth.pair_samples import Truth, class_ids, sample
from rwkvctl.data.convert.synth.volume_pairs import (
    write_volume_annotators,
    write_volume_cases,
    write_volume_contrasts,
    write_volume_folders,
    write_volume_organs,
    write_volume_suffix,
    write_volume_tiff,
)

__all__ = [
    "write_beginnings",
    "write_beside",
    "write_cases",
    "write_colour",
    "write_csv",
    "write_endings",
    "write_grey",
    "write_ids",
    "write_jpegmasks",
    "write_junk",
    "write_languages",
    "write_metadata",
    "write_objects",
    "write_palette",
    "write_volume_annotators",
    "write_volume_cases",
    "write_volume_contrasts",
    "write_volume_folders",
    "write_volume_organs",
    "write_volume_suffix",
    "write_volume_tiff",
]

OPTIONS = {
    "suffix": "--images 'Bilder/*.tif' --masks 'Masken/*_maske.gif'",
    "annotators": "--images 'Image_*.jpg' --masks 'Image_*_{annotator}.png' --annotator 1stHO",
    "instances": "--images '{id}/images/{id}.png' --masks '{id}/masks/{n}.png'",
    "classes": "--images 'foto/*' --masks 'organ/*_{class}.png' --classes background,heart,lung",
    "grey": "--images 'scan/*' --masks 'scan_label/*' --classes background=0,skin=85,fat=170,muscle=255",
    "colour": "--images 'photos/*' --masks 'annotations/*' --classes background=#000000,stem=#00ff00,leaf=#ff8000",
    "palette": "--images 'JPEGImages/*' --masks 'SegmentationClass/*' --classes background=0,cup=1,disc=2,ignore=255",
    "ids": "--images '*.jpg' --masks '*_labels.png' --classes background,liver,kidney,spleen",
    "objects": "--images 'raw/*' --masks 'gt/*' --classes background=0,nucleus=1-65535",
    "jpegmasks": "--images 'x-ray/*' --masks 'mask/*' --classes background=0,lung=128,heart=255",
    "languages": "--images '*/{fotos,图像,снимки}/*' --masks '*/{máscaras,标签,маски}/*{,_m}' --split-from folders",
    "endings": "--images 'B/*' --masks 'A/*'",
    "beside": "--images '*.jpg' --masks '*.png'",
    "beginnings": "--images 'img_*' --masks 'mask_*'",
    "cases": "--images '*/photo' --masks '*/lesion'",
    "csv": "--csv liste.csv",
    "metadata": "--csv metadata.tsv --images 'img/*' --masks 'img/*_seg'",
    "junk": "--images 'pictures/*' --masks 'gt/*'",
    "parts": "--images '*/Fotos/*' --masks '*/Ground truth/*' --split-from folders",
    **volume_pairs.OPTIONS,
}
"""By form, what pairs its files."""


def write_suffix(folder: Path, n: int, size: int, seed: int) -> Truth:
    """`Bilder/Größe N.tif` and `Masken/Größe N_maske.gif`, in a wrapper folder, beside a preview that is neither."""
    top, truth = folder / "Augen 2019", Truth()
    for number in range(1, n + 1):
        image, (mask,) = sample(number, size, seed)
        save(top / "Bilder" / f"Größe {number}.tif", image)
        save(top / "Masken" / f"Größe {number}_maske.gif", mask.astype(np.uint8) * 255)
        truth[f"Augen 2019/Bilder/Größe {number}.tif"] = class_ids([mask])
    save(top / "Vorschau.png", image[::2, ::2])
    write(top / "Bilder" / "liesmich.txt", "Bilder von 2019")
    return truth


def write_annotators(folder: Path, n: int, size: int, seed: int) -> Truth:
    """`Image_01L.jpg`, `Image_01R.jpg` and masks by two people beside them, `Image_01L_1stHO.png`, as CHASE_DB1 has."""
    truth = Truth()
    for number in range(n):
        image, (mask,) = sample(number, size, seed)
        name = f"Image_{number // 2 + 1:02d}{'LR'[number % 2]}"
        save(folder / f"{name}.jpg", image)
        save(folder / f"{name}_1stHO.png", mask)
        save(folder / f"{name}_2ndHO.png", np.roll(mask, 2, axis=1))
        truth[f"{name}.jpg"] = class_ids([mask])
    return truth


def write_instances(folder: Path, n: int, size: int, seed: int) -> Truth:
    """`ID/images/ID.png` and an object a file in `ID/masks/`, under names of their own, as the nuclei of 2018 have."""
    truth = Truth()
    for number in range(n):
        image, objects = sample(number, size, seed, classes=2)
        name = f"{seed:02x}{number * 7919 + 4096:06x}"
        save(folder / name / "images" / f"{name}.png", image)
        for which, mask in enumerate(objects):
            save(folder / name / "masks" / f"{name[::-1]}{which}.png", mask.astype(np.uint8) * 255)
        truth[f"{name}/images/{name}.png"] = class_ids([objects[0] | objects[1]])
    return truth


def write_classes(folder: Path, n: int, size: int, seed: int) -> Truth:
    """`foto/case_N.jpg` and a file a class, `organ/case_N_heart.png`; every third image has no lung."""
    truth = Truth()
    for number in range(1, n + 1):
        image, masks = sample(number, size, seed, classes=2)
        save(folder / "foto" / f"case_{number}.jpg", image)
        masks = masks[: 1 + (number % 3 > 0)]
        truth[f"foto/case_{number}.jpg"] = class_ids(masks)
        for name, mask in zip(("heart", "lung"), masks, strict=False):
            save(folder / "organ" / f"case_{number}_{name}.png", mask.astype(np.uint8) * 255)
    return truth


def write_parts(folder: Path, n: int, size: int, seed: int) -> Truth:
    """`Training/Fotos/N.jpg` and `Training/Ground truth/N.png`, the same under `Validate/` and `TEST/`; each counts
    from 1."""
    truth = Truth()
    parts = {"Training": n - 2 * (n // 4), "Validate": n // 4, "TEST": n // 4}
    for salt, (part, count) in enumerate(parts.items()):
        for number in range(1, count + 1):
            image, (mask,) = sample(number + 1000 * salt, size, seed)
            save(folder / part / "Fotos" / f"{number}.jpg", image)
            save(folder / part / "Ground truth" / f"{number}.png", mask)
            truth[f"{part}/Fotos/{number}.jpg"] = class_ids([mask])
    return truth


def trap_unpaired(folder: Path) -> Path:
    """The first mask of the first image is gone."""
    words = (
        "_maske.", "_1stHO.", "/masks/", "_heart.", "/Ground truth/",
        "/scan_label/", "/annotations/", "/SegmentationClass/", "_labels.", "/gt/", "/mask/",
        "/máscaras/", "/A/", "/IMG_0001.png", "/mask_", "/lesion.", "_seg.", *volume_pairs.MASKS,
    )  # fmt: skip
    first = min(path for path in folder.rglob("*.*") if any(word in path.as_posix() for word in words))
    first.unlink()
    return first
