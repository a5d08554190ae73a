"""The layouts of well-known downloads: what `data doctor` makes of each by itself, and that its line converts them."""

from __future__ import annotations

import shlex
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import nibabel
import numpy as np
import pytest
from PIL import Image

from rwkvctl.data.convert.doctor import examine
from rwkvctl.data.store.manifest import Manifest

from ...cli.test_data import run

Draw = Callable[[np.random.Generator, Path], None]
SIZE = 48


def photo(rng: np.random.Generator, path: Path) -> None:
    coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    coarse.resize((SIZE, SIZE), Image.Resampling.BICUBIC).save(path)


def drawn(rng: np.random.Generator, values: Sequence[int], at: int | None = None) -> np.ndarray:
    """Boxes of these values on nothing."""
    mask = np.zeros((SIZE, SIZE), np.uint8)
    for number, value in enumerate(values):
        top, left = rng.integers(0, 6, 2) + (12 * number if at is None else at)
        mask[top : top + 9, left : left + 9] = value
    return mask


def mask(rng: np.random.Generator, path: Path) -> None:
    Image.fromarray(drawn(rng, [255])).save(path)


def beside(rng: np.random.Generator, path: Path) -> None:
    Image.fromarray(drawn(rng, [255], at=24)).save(path)


def field(rng: np.random.Generator, path: Path) -> None:
    y, x = np.mgrid[:SIZE, :SIZE] - SIZE / 2
    Image.fromarray(((x**2 + y**2 < 22**2) * 255).astype(np.uint8)).save(path)


def text(rng: np.random.Generator, path: Path) -> None:
    path.write_text("text")


class Files(NamedTuple):
    """`{n}` of the path is each of the numbers."""

    path: str
    numbers: Sequence[int]
    draw: Draw


class Layout(NamedTuple):
    files: list[Files]
    options: str
    samples: int
    question: str = ""


DRIVE = [
    Files("training/images/{n}_training.tif", range(21, 27), photo),
    Files("training/1st_manual/{n}_manual1.gif", range(21, 27), mask),
    Files("training/mask/{n}_training_mask.gif", range(21, 27), field),
    Files("test/images/{n:02d}_test.tif", range(1, 5), photo),
    Files("test/1st_manual/{n:02d}_manual1.gif", range(1, 5), mask),
    Files("test/2nd_manual/{n:02d}_manual2.gif", range(1, 5), mask),
    Files("test/mask/{n:02d}_test_mask.gif", range(1, 5), field),
]
REFUGE = [
    file
    for name, letter in (("Glaucoma", "g"), ("Non-Glaucoma", "n"))
    for file in (
        Files(f"Training400/{name}/{letter}{{n:04d}}.jpg", range(1, 7), photo),
        Files(f"Annotation-Training400/Disc_Cup_Masks/{name}/{letter}{{n:04d}}.bmp", range(1, 7), mask),
    )
]
COVID = [
    file
    for part in ("Train", "Val", "Test")
    for name in ("COVID-19", "Normal")
    for file in (
        Files(f"{part}/{name}/images/{name.lower()}_{{n}}.png", range(1, 5), photo),
        Files(f"{part}/{name}/lung masks/{name.lower()}_{{n}}.png", range(1, 5), mask),
    )
]
CAMVID = [
    file
    for part in ("train", "val", "test")
    for file in (
        Files(f"{part}/0001TP_{part}{{n:03d}}.png", range(4), photo),
        Files(f"{part}annot/0001TP_{part}{{n:03d}}.png", range(4), mask),
    )
]
LAYOUTS = {
    "DRIVE": Layout(
        DRIVE, "--images '*/images/*{_test,_training}' --masks '*/1st_manual/*_manual1' --split-from folders", 10
    ),
    "Montgomery": Layout(
        [
            Files("CXR_png/MCUCXR_{n:04d}_0.png", range(1, 9), photo),
            Files("ManualMask/leftMask/MCUCXR_{n:04d}_0.png", range(1, 9), mask),
            Files("ManualMask/rightMask/MCUCXR_{n:04d}_0.png", range(1, 9), beside),
            Files("ClinicalReadings/MCUCXR_{n:04d}_0.txt", range(1, 9), text),
        ],
        "--images 'CXR_png/MCUCXR_*_0' --masks 'ManualMask/*/MCUCXR_*_0' --classes background,leftMask,rightMask",
        8,
        "each mask is of a class",
    ),
    "PH2": Layout(
        [
            Files("PH2 images/IMD{n:03d}/IMD{n:03d}_Dermoscopic_Image/IMD{n:03d}.bmp", range(2, 9), photo),
            Files("PH2 images/IMD{n:03d}/IMD{n:03d}_lesion/IMD{n:03d}_lesion.bmp", range(2, 9), mask),
        ],
        "--images 'PH2 images/IMD{a}/IMD{a}_Dermoscopic_Image/IMD{a}' "
        "--masks 'PH2 images/IMD{a}/IMD{a}_lesion/IMD{a}_lesion'",
        7,
    ),
    "REFUGE": Layout(REFUGE, "--images 'Training400/*/*' --masks 'Annotation-Training400/Disc_Cup_Masks/*/*'", 12),
    "COVID-QU-Ex": Layout(COVID, "--images '*/*/images/*' --masks '*/*/lung masks/*' --split-from folders", 24),
    "CamVid": Layout(CAMVID, "--images '*/*' --masks '*annot/*' --split-from folders", 12),
    "ISIC 2018": Layout(
        [
            Files("ISIC2018_Task1-2_Training_Input/ISIC_{n:07d}.jpg", range(8), photo),
            Files("ISIC2018_Task1_Training_GroundTruth/ISIC_{n:07d}_segmentation.png", range(8), mask),
            Files("ISIC2018_Task1-2_Training_Input/LICENSE{n}.txt", range(1), text),
        ],
        "--images 'ISIC2018_Task1-2_Training_Input/ISIC_*' "
        "--masks 'ISIC2018_Task1_Training_GroundTruth/ISIC_*_segmentation'",
        8,
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_well_known_layout(name: str, tmp_path: Path):
    layout, tree, rng = LAYOUTS[name], tmp_path / name, np.random.default_rng(0)
    for file in layout.files:
        for number in file.numbers:
            path = tree / file.path.format(n=number)
            path.parent.mkdir(parents=True, exist_ok=True)
            file.draw(rng, path)
    (finding,) = examine([tree]).findings
    assert (finding.dataset, finding.problems) == ("pairs", [])
    assert (finding.options, finding.samples) == (layout.options, layout.samples)
    assert layout.question in finding.question
    assert bool(layout.question) == bool(finding.question)
    words = shlex.split(run("doctor", tree).partition("  prepare  ")[2])
    run(*words[2:], "--out", tmp_path / "set")
    assert Manifest.load(tmp_path / "set").content.counts["labeled"] == layout.samples


def test_photographs_in_folders_called_after_masks_stay_classes(tmp_path: Path):
    rng = np.random.default_rng(0)
    for part in ("train", "val"):
        for name in ("with_mask", "without_mask"):
            (tmp_path / "tree" / part / name).mkdir(parents=True)
            for number in range(4):
                photo(rng, tmp_path / "tree" / part / name / f"{number}.jpg")
    assert [finding.dataset for finding in examine([tmp_path / "tree"]).findings] == ["imagefolder"]


def scan(path: Path, labels: Sequence[int] | None) -> None:
    """Noise, or boxes of these labels in nothing."""
    rng = np.random.default_rng(zlib.crc32(f"{path.parent.name}/{path.name}".encode()))
    voxels = np.zeros((16, 18, 6), np.uint8) if labels else rng.normal(100, 40, (16, 18, 6)).astype(np.int16)
    for number, label in enumerate(labels or ()):
        voxels[4 * number : 4 * number + 3, 4:12, 1:5] = label
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([-1.0, -1, 3, 1])), path)


VOLUMES: dict[str, tuple[dict[str, Sequence[int] | None], str]] = {
    "BraTS": (
        {f"BraTS20_{{n:03d}}/BraTS20_{{n:03d}}_{name}.nii.gz": None for name in ("flair", "t1", "t1ce", "t2")}
        | {"BraTS20_{n:03d}/BraTS20_{n:03d}_seg.nii.gz": (1, 2, 4)},
        "--images 'BraTS20_{a}/BraTS20_{a}_flair' --masks 'BraTS20_{a}/BraTS20_{a}_seg' "
        "--classes background=0,label_1=1,label_2=2,label_4=4",
    ),
    "KiTS": (
        {"data/case_{n:05d}/imaging.nii.gz": None, "data/case_{n:05d}/segmentation.nii.gz": (1, 2)},
        "--images 'data/case_*/imaging' --masks 'data/case_*/segmentation' --classes background,label_1,label_2",
    ),
    "LiTS": (
        {"volume-{n}.nii": None, "segmentation-{n}.nii": (1, 2)},
        "--images 'volume-*' --masks 'segmentation-*' --classes background,label_1,label_2",
    ),
    "SegTHOR": (
        {"train/Patient_{n:02d}/Patient_{n:02d}.nii.gz": None, "train/Patient_{n:02d}/GT.nii.gz": (1, 2)},
        "--images 'train/Patient_{a}/Patient_{a}' --masks 'train/Patient_{a}/GT' --classes background,label_1,label_2",
    ),
}
"""Paths with the labels of each, and the line."""


@pytest.mark.parametrize("name", VOLUMES)
def test_a_well_known_layout_of_volumes(name: str, tmp_path: Path):
    files, options = VOLUMES[name]
    for path, labels in files.items():
        for number in range(1, 6):
            scan(tmp_path / name / path.format(n=number), labels)
    (finding,) = examine([tmp_path / name]).findings
    assert (finding.dataset, finding.form, finding.problems, finding.options) == ("pairs", "volumes", [], options)
    assert ("one contrast is taken of 4" in finding.question) == (name == "BraTS")
    words = shlex.split(run("doctor", tmp_path / name).partition("  prepare  ")[2])
    run(*words[2:], "--out", tmp_path / "set")
    assert len(Manifest.load(tmp_path / "set").ids(None, "test")) == 1
