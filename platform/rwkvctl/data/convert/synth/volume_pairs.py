"""Folders of volumes as people have them for the format `pairs`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from rwkvctl.data.convert.synth.output import write
from rwkvctl.data.convert.synth.scans import axes_of, save, scan

NAMES = "background,label_1,label_2,label_3"
OPTIONS = {
    "volume_suffix": f"--images 'case_*' --masks 'case_*_seg' --classes {NAMES}",
    "volume_folders": f"--images 'CT/Pat *' --masks 'Segmentierung/Pat *' --classes {NAMES}",
    "volume_cases": f"--images '*/ct' --masks '*/label' --classes {NAMES}",
    "volume_organs": "--images '*/ct' --masks '*/organs/{heart,ventricle}' --classes background,heart,ventricle",
    "volume_annotators": "--images 'scans/p*' --masks 'masks/p*_{annA,annB}' --annotator annA",
    "volume_tiff": f"--images 'stacks/cell*' --masks 'stacks/cell*_mask' --classes {NAMES}",
    "volume_contrasts": "--images 'glioma-*/glioma-*_t1' --masks 'glioma-*/glioma-*_seg' "
    "--classes background=0,label_1=1,label_2=2,label_4=4",
}
"""By form, what pairs its files."""
MASKS = ("_seg.", "/Segmentierung/", "/label.mhd", "_annA.", "/heart.nii", "_mask.tif")
"""In the paths of masks."""


def write_volume_suffix(folder: Path, n: int, size: int, seed: int) -> None:
    """`case_N.nii.gz` and `case_N_seg.nii.gz` in one folder, along axes of their own, beside a preview."""
    for number in range(1, n + 1):
        own = scan(seed, number, size)
        save(folder / f"case_{number}.nii.gz", own.image, own, axes_of(number))
        save(folder / f"case_{number}_seg.nii.gz", own.label, own, axes_of(number))
    write(folder / "preview" / "all.csv", "case,seen\n")


def write_volume_folders(folder: Path, n: int, size: int, seed: int) -> None:
    """`CT/Pat N.mha` and `Segmentierung/Pat N.nii.gz`: image and label of different kinds, along different axes."""
    for number in range(1, n + 1):
        own = scan(seed, number, size)
        save(folder / "CT" / f"Pat {number}.mha", own.image, own, axes_of(number))
        save(folder / "Segmentierung" / f"Pat {number}.nii.gz", own.label, own, axes_of(number + 1))


def write_volume_cases(folder: Path, n: int, size: int, seed: int) -> None:
    """`P01/ct.nrrd` and `P01/label.mhd` with its voxels beside it, in a wrapper folder."""
    for number in range(1, n + 1):
        own = scan(seed, number, size)
        top = folder / "Herzen 2024" / f"P{number:02d}"
        save(top / "ct.nrrd", own.image, own, axes_of(number))
        save(top / "label.mhd", own.label, own, axes_of(number))


def write_volume_organs(folder: Path, n: int, size: int, seed: int) -> None:
    """`s01/ct.nii.gz` and a file an organ, `s01/organs/heart.nii.gz`; every third case has no ventricle."""
    for number in range(1, n + 1):
        own = scan(seed, number, size)
        top = folder / f"s{number:02d}"
        save(top / "ct.nii.gz", own.image, own, axes_of(number))
        save(top / "organs" / "heart.nii.gz", (own.label == 2).astype(np.uint8), own, axes_of(number))
        if number % 3:
            save(top / "organs" / "ventricle.nii.gz", (own.label == 3).astype(np.uint8) * 255, own, axes_of(number))


def write_volume_annotators(folder: Path, n: int, size: int, seed: int) -> None:
    """`scans/p01.mha` and masks of one thing by two people, `masks/p01_annA.mha`."""
    for number in range(1, n + 1):
        own = scan(seed, number, size)
        mask = (own.label >= 2).astype(np.uint8)
        save(folder / "scans" / f"p{number:02d}.mha", own.image, own, axes_of(number))
        save(folder / "masks" / f"p{number:02d}_annA.mha", mask, own, axes_of(number))
        save(folder / "masks" / f"p{number:02d}_annB.mha", np.roll(mask, 1, axis=2), own, axes_of(number))


def write_volume_tiff(folder: Path, n: int, size: int, seed: int) -> None:
    """`stacks/cell1.tif` of 16 bits with ImageJ's spacing, and `cell1_mask.tif` without any."""
    from PIL import Image

    for number in range(1, n + 1):
        own = scan(seed, number, size)
        depth, row, column = own.spacing
        about = f"ImageJ=1.53t\nimages={len(own.image)}\nslices={len(own.image)}\nunit=mm\nspacing={depth}\n"
        tags = {270: about, 282: 1 / column, 283: 1 / row, 296: 1}
        pages = [Image.fromarray((plane.astype(np.int32) + 1024).astype(np.uint16)) for plane in own.image]
        path = folder / "stacks" / f"cell{number}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        pages[0].save(path, save_all=True, append_images=pages[1:], tiffinfo=tags)
        planes = [Image.fromarray(plane) for plane in own.label]
        planes[0].save(path.with_stem(f"cell{number}_mask"), save_all=True, append_images=planes[1:])


def write_volume_contrasts(folder: Path, n: int, size: int, seed: int) -> None:
    """`glioma-01/glioma-01_t1.nii.gz`, `_t2` and `_seg` with labels 0, 1, 2 and 4 that were saved as floats."""
    for number in range(1, n + 1):
        own = scan(seed, number, size)
        name = f"glioma-{number:02d}"
        labels = np.array([0, 1, 2, 4], np.float32)[own.label]
        for kind, array in (("t1", own.image), ("t2", -own.image), ("seg", labels)):
            save(folder / name / f"{name}_{kind}.nii.gz", array, own, axes_of(number))
