"""An nnU-Net v2 data set folder: volumes as NIfTI, or RGB images as PNG."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

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


def _write_json(root: Path, channels: dict[str, str], labels: dict[str, int], n: int, ending: str) -> None:
    content = {"channel_names": channels, "labels": labels, "numTraining": n, "file_ending": ending}
    write(root / "dataset.json", json.dumps(content, indent=4))


def trap_unpaired(folder: Path) -> Path:
    """A training image without its labels."""
    label = min(next(folder.rglob("labelsTr")).iterdir())
    label.unlink()
    return next(folder.rglob(f"{label.name.split('.')[0]}_0000.*"))
