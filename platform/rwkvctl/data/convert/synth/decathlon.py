"""A task of the Medical Segmentation Decathlon."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rwkvctl.data.convert.synth.output import write
from rwkvctl.data.convert.synth.scans import CLASSES, axes_of, save, scan


def write_channels(folder: Path, n: int, size: int, seed: int) -> None:
    """`Task05_Heart`: two channels along the fourth axis of each image."""
    import nibabel
    import numpy as np

    write_task(folder, n, size, seed)
    root = (folder / "Task02_Heart").rename(folder / "Task05_Heart")
    for path in root.rglob("images*/*.nii.gz"):
        image: Any = nibabel.load(path)
        voxels = np.asarray(image.dataobj)
        nibabel.save(nibabel.Nifti1Image(np.stack([voxels, 100 - voxels], axis=-1), image.affine), path)
    told = root / "dataset.json"
    write(told, told.read_text().replace('"0": "MRI"', '"0": "T2", "1": "ADC"'))


def write_task(folder: Path, n: int, size: int, seed: int) -> None:
    """`Task02_Heart`, with a test image."""
    root = folder / "Task02_Heart"
    for number in range(1, n + 2):
        own = scan(seed, number, size)
        part = "Tr" if number <= n else "Ts"
        save(root / f"images{part}" / f"la_{number:03d}.nii.gz", own.image, own, axes_of(number))
        if part == "Tr":
            save(root / "labelsTr" / f"la_{number:03d}.nii.gz", own.label, own, axes_of(number))
    names = [f"la_{number:03d}.nii.gz" for number in range(1, n + 1)]
    content = {
        "name": "LeftAtrium",
        "modality": {"0": "MRI"},
        "labels": {str(number): name for number, name in enumerate(CLASSES)},
        "numTraining": n,
        "training": [{"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"} for name in names],
        "test": [f"./imagesTs/la_{n + 1:03d}.nii.gz"],
    }
    write(root / "dataset.json", json.dumps(content, indent=1))


def trap_macos(folder: Path) -> Path:
    """The files that macOS leaves in tars, as the Decathlon's have them."""
    for path in list(folder.rglob("*.nii.gz")):
        write(path.with_name(f"._{path.name}"), b"\0\5\26\7")
    return next(folder.rglob("._la_001.nii.gz"))


def trap_channels(folder: Path) -> Path:
    """dataset.json has a channel more than the files."""
    path = next(folder.rglob("dataset.json"))
    write(path, path.read_text().replace('"0": "', '"2": "PD",\n  "0": "', 1))
    return path


def trap_gone(folder: Path) -> Path:
    """A label that is listed is not there."""
    path = next(folder.rglob("labelsTr/la_002.nii.gz"))
    path.unlink()
    return path.parents[1] / "dataset.json"
