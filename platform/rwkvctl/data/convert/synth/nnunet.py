"""nnU-Net v2 data set folders: volumes as NIfTI, or images as PNG, of one channel and of several."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwkvctl.data.convert.synth import phantom
from rwkvctl.data.convert.synth.output import save, save_nifti, write
from rwkvctl.data.convert.synth.polyps import polyp

DEPTH = 6


def write_volumes(folder: Path, n: int, size: int, seed: int) -> None:
    """`Dataset042_Hearts`: NIfTI, one channel, four classes; `n` cases with labels, two without."""
    root = folder / "Dataset042_Hearts"
    for number in range(1, n + 3):
        rng = np.random.default_rng([seed, 10, number])
        image, label = phantom.heart_volume(phantom.heart_anatomy(rng), size, DEPTH, 1.0, rng)
        affine = np.diag([-1.5, -1.5, 8.0, 1.0])
        affine[:3, 3] = rng.uniform(-90, 90, 3).round(1)
        part = "Tr" if number <= n else "Ts"
        save_nifti(root / f"images{part}" / f"heart_{number:03d}_0000.nii.gz", image.transpose(2, 1, 0), affine)
        if part == "Tr":
            save_nifti(root / "labelsTr" / f"heart_{number:03d}.nii.gz", label.transpose(2, 1, 0), affine)
    labels = {"background": 0, "right ventricle": 1, "myocardium": 2, "left ventricle": 3}
    _write_json(root, {"0": "MRI"}, labels, n, ".nii.gz")


def write_channels(folder: Path, n: int, size: int, seed: int) -> None:
    """`Dataset045_Tumours`: two channels of MR whose background is 0, as of a skull-stripped brain; nested regions; a
    corner of the first two cases is labelled to be ignored."""
    root = folder / "Dataset045_Tumours"
    for number in range(1, n + 3):
        rng = np.random.default_rng([seed, 14, number])
        t1, flair, label = tumour(rng, size)
        if number <= 2:
            label[:, :3, :3] = 4
        affine = np.diag([1.0, -1.0, 3.0, 1.0])
        affine[:3, 3] = rng.uniform(-90, 90, 3).round(1)
        part = "Tr" if number <= n else "Ts"
        for channel, image in enumerate((t1, flair)):
            name = f"tumour_{number:03d}_{channel:04d}.nii.gz"
            save_nifti(root / f"images{part}" / name, image.transpose(2, 1, 0), affine)
        if part == "Tr":
            save_nifti(root / "labelsTr" / f"tumour_{number:03d}.nii.gz", label.transpose(2, 1, 0), affine)
    labels: dict[str, int | list[int]]
    labels = {"background": 0, "whole tumour": [1, 2, 3], "tumour core": [2, 3], "enhancing": 3, "ignore": 4}
    _write_json(root, {"0": "T1", "1": "FLAIR"}, labels, n, ".nii.gz", regions_class_order=[1, 2, 3])


def tumour(rng: np.random.Generator, size: int) -> tuple[NDArray[np.int16], NDArray[np.int16], NDArray[np.uint8]]:
    """T1, FLAIR and labels (D, H, W): an ellipse of tissue in air, and three balls in one another."""
    z, y, x = np.mgrid[:DEPTH, :size, :size].astype(float)
    tissue = ((y - size / 2) / (0.32 * size)) ** 2 + ((x - size / 2) / (0.28 * size)) ** 2 < 1
    centre = rng.uniform(0.42, 0.58, 2) * size
    away = np.sqrt((y - centre[0]) ** 2 + (x - centre[1]) ** 2 + (2 * (z - DEPTH / 2)) ** 2) / size
    label = np.zeros(tissue.shape, np.uint8)
    for number, radius in enumerate((0.17, 0.12, 0.07), start=1):
        label[away < radius] = number
    means = np.array([[300, 260, 220, 620], [250, 640, 520, 480]])
    images = [(own[label] + rng.normal(0, 20, label.shape)) * rng.uniform(0.8, 1.6) * tissue for own in means]
    t1, flair = (np.maximum(image.round(), 0).astype(np.int16) for image in images)
    return t1, flair, label * tissue


def write_ct(folder: Path, n: int, size: int, seed: int) -> None:
    """`Dataset046_Livers`: CT in HU, one class; `splits_final.json` with two folds; labels of the test cases, too."""
    root = folder / "Dataset046_Livers"
    for number in range(1, n + 3):
        rng = np.random.default_rng([seed, 15, number])
        z, y, x = np.mgrid[:DEPTH, :size, :size].astype(float)
        body = ((y - size / 2) / (0.45 * size)) ** 2 + ((x - size / 2) / (0.48 * size)) ** 2 < 1
        place = rng.uniform(0.35, 0.6, 2) * size
        liver = (np.hypot((y - place[0]) * 1.3, x - place[1]) < 0.2 * size) & body & (z > 0)
        image = np.where(liver, 110, np.where(body, 30, -1000)) + rng.normal(0, 15, liver.shape)
        affine = np.diag([-0.8, -0.8, 5.0, 1.0])
        part = "Tr" if number <= n else "Ts"
        path = root / f"images{part}" / f"liver_{number:03d}_0000.nii.gz"
        save_nifti(path, image.round().astype(np.int16).transpose(2, 1, 0), affine)
        save_nifti(
            root / f"labels{part}" / f"liver_{number:03d}.nii.gz", liver.astype(np.uint8).transpose(2, 1, 0), affine
        )
    _write_json(root, {"0": "CT"}, {"background": 0, "liver": 1}, n, ".nii.gz")
    names = [f"liver_{number:03d}" for number in range(1, n + 1)]
    halves = (names[::2], names[1::2])
    folds = [{"train": halves[1 - fold], "val": halves[fold]} for fold in range(2)]
    write(root / "splits_final.json", json.dumps(folds, indent=4))


def write_slices(folder: Path, n: int, size: int, seed: int) -> None:
    """`Dataset043_Polyps`: PNG, the three channels in one file, labels 0 and 1."""
    root = folder / "Dataset043_Polyps"
    for number in range(1, n + 3):
        image, mask = polyp([seed, 11, number], (size * 3 // 4, size))
        part = "Tr" if number <= n else "Ts"
        save(root / f"images{part}" / f"polyp_{number:03d}_0000.png", image)
        if part == "Tr":
            save(root / "labelsTr" / f"polyp_{number:03d}.png", mask // 255)
    _write_json(root, {"0": "R", "1": "G", "2": "B"}, {"background": 0, "polyp": 1}, n, ".png")


def write_slice_channels(folder: Path, n: int, size: int, seed: int) -> None:
    """`Dataset044_Vessels`: PNG, two grey pictures a case, of 8 bits and of 16 (depth), labels 0 and 1."""
    root = folder / "Dataset044_Vessels"
    for number in range(1, n + 3):
        image, mask = polyp([seed, 12, number], (size * 3 // 4, size))
        rng = np.random.default_rng([seed, 13, number])
        depth = 400 + 900.0 * (mask == 0) + rng.normal(0, 30, mask.shape)
        part = "Tr" if number <= n else "Ts"
        save(root / f"images{part}" / f"vessel_{number:03d}_0000.png", image[..., 1])
        save(root / f"images{part}" / f"vessel_{number:03d}_0001.png", depth.round().astype(np.uint16))
        if part == "Tr":
            save(root / "labelsTr" / f"vessel_{number:03d}.png", mask // 255)
    _write_json(root, {"0": "rgb_to_0_1", "1": "depth"}, {"background": 0, "vessel": 1}, n, ".png")


def _write_json(
    root: Path, channels: dict[str, str], labels: Mapping[str, int | list[int]], n: int, ending: str, **more: Any
) -> None:
    content = {"channel_names": channels, "labels": labels, "numTraining": n, "file_ending": ending, **more}
    write(root / "dataset.json", json.dumps(content, indent=4))


def trap_unpaired(folder: Path) -> Path:
    """A training image without its labels."""
    label = min(next(folder.rglob("labelsTr")).iterdir())
    label.unlink()
    return next(folder.rglob(f"{label.name.split('.')[0]}_0000.*"))
