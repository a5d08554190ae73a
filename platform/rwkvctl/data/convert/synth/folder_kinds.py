"""Folders and names as people have them around the world, with what else lies in them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from rwkvctl.data.convert.synth.output import save, write
from rwkvctl.data.convert.synth.pair_samples import Truth, class_ids, sample


def write_languages(folder: Path, n: int, size: int, seed: int) -> Truth:
    """Parts that are called so in Spanish, Chinese and Russian, each with folders under names of its own."""
    parts = {
        "Entrenamiento": ("fotos", "máscaras", "_m", n - 2 * (n // 4)),
        "验证集": ("图像", "标签", "", n // 4),
        "тест": ("снимки", "маски", "", n // 4),
    }
    truth = Truth()
    for salt, (part, (images, masks, tail, count)) in enumerate(parts.items()):
        for number in range(1, count + 1):
            image, (mask,) = sample(number + 1000 * salt, size, seed)
            save(folder / part / images / f"{number}.jpg", image)
            save(folder / part / masks / f"{number}{tail}.png", mask.astype(np.uint8) * 255)
            truth[f"{part}/{images}/{number}.jpg"] = class_ids([mask])
    return truth


def write_endings(folder: Path, n: int, size: int, seed: int) -> Truth:
    """`A/N` and `B/N` with endings that differ from file to file; only their content says which are the masks."""
    truth = Truth()
    for number in range(1, n + 1):
        image, (mask,) = sample(number, size, seed)
        name = f"{number}.{('png', 'BMP', 'tif', 'png')[number % 4]}"
        save(folder / "A" / f"{number}.{('gif', 'png', 'bmp')[number % 3]}", mask.astype(np.uint8) * 255)
        save(folder / "B" / name, image)
        truth[f"B/{name}"] = class_ids([mask])
    return truth


def write_beside(folder: Path, n: int, size: int, seed: int) -> Truth:
    """`N.jpg` and its mask `N.png` in one folder, as annotation tools leave them, with a JSON file each."""
    truth = Truth()
    for number in range(1, n + 1):
        image, (mask,) = sample(number, size, seed)
        save(folder / f"IMG_{number:04d}.jpg", image)
        save(folder / f"IMG_{number:04d}.png", mask.astype(np.uint8) * 255)
        write(folder / f"IMG_{number:04d}.json", "{}")
        truth[f"IMG_{number:04d}.jpg"] = class_ids([mask])
    return truth


def write_beginnings(folder: Path, n: int, size: int, seed: int) -> Truth:
    """`img_N.png` and `mask_N.png` in one folder."""
    truth = Truth()
    for number in range(1, n + 1):
        image, (mask,) = sample(number, size, seed)
        save(folder / f"img_{number}.png", image)
        save(folder / f"mask_{number}.png", mask)
        truth[f"img_{number}.png"] = class_ids([mask])
    return truth


def write_cases(folder: Path, n: int, size: int, seed: int) -> Truth:
    """A folder a case, with files of the same names in each: `case N/photo.jpg` and `case N/lesion.png`."""
    truth = Truth()
    for number in range(1, n + 1):
        image, (mask,) = sample(number, size, seed)
        save(folder / f"case {number}" / "photo.jpg", image)
        save(folder / f"case {number}" / "lesion.png", mask.astype(np.uint8) * 255)
        truth[f"case {number}/photo.jpg"] = class_ids([mask])
    return truth


def write_junk(folder: Path, n: int, size: int, seed: int) -> Truth:
    """`pictures/N.png` and `gt/N.png` among the litter of operating systems and files beside them."""
    truth = Truth()
    for number in range(1, n + 1):
        image, (mask,) = sample(number, size, seed)
        for name, pixels in (("pictures", image), ("gt", mask.astype(np.uint8) * 255)):
            save(folder / name / f"{number}.png", pixels)
            write(folder / "__MACOSX" / name / f"._{number}.png", b"\0\5\26\7")
            write(folder / name / f"._{number}.png", b"\0\5\26\7")
        write(folder / "pictures" / f"{number}.xml", "<annotation/>")
        truth[f"pictures/{number}.png"] = class_ids([mask])
    for name in ("Thumbs.db", "desktop.ini", ".DS_Store"):
        write(folder / "gt" / name, b"x")
    write(folder / "README.txt", "made in 2019")
    return truth


def write_csv(folder: Path, n: int, size: int, seed: int) -> Truth:
    """`scans/` and `annotations/` under names that have nothing in common; `liste.csv`, as Excel writes it in Germany,
    says what belongs together, by paths of a Windows machine, with part and patient."""
    truth, home = Truth(), "D:\\Studie 2019\\Export"
    rows = ["Nr;Bild;Maske;Split;Patient"]
    for number in range(1, n + 1):
        image, (mask,) = sample(number, size, seed)
        names = f"{number * 7919 + 100000:06d}.PNG", f"{number * 104729 % 1000003:07d}.png"
        save(folder / "scans" / names[0], image)
        save(folder / "annotations" / names[1], mask.astype(np.uint8) * 255)
        part = "Test" if number > n - n // 4 else "Validierung" if number > n - 2 * (n // 4) else "Training"
        paths = f"{home}\\scans\\{names[0]};{home}\\annotations\\{names[1]}"
        rows.append(f"{number};{paths};{part};P{(number + 1) // 2:03d}")
        truth[f"scans/{names[0]}"] = class_ids([mask])
    write(folder / "liste.csv", "\ufeff" + "\r\n".join(rows) + "\r\n")
    return truth


def write_metadata(folder: Path, n: int, size: int, seed: int) -> Truth:
    """`img/N.png` and `img/N_seg.png`; `metadata.tsv` has a line an image without its ending: subject, sex, subset."""
    truth = Truth()
    rows = ["image_id\tsubject\tsex\tsubset"]
    for number in range(1, n + 1):
        image, (mask,) = sample(number, size, seed)
        save(folder / "img" / f"{number:03d}.png", image)
        save(folder / "img" / f"{number:03d}_seg.png", mask)
        part = "test" if number > n - n // 4 else "train"
        rows.append(f"{number:03d}\ts{(number + 1) // 2}\t{'mf'[number % 2]}\t{part}")
        truth[f"img/{number:03d}.png"] = class_ids([mask])
    write(folder / "metadata.tsv", "\n".join(rows) + "\n")
    return truth
