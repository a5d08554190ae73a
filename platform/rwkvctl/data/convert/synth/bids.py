"""BIDS data sets with labels in their derivatives."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from rwkvctl.data.convert.synth.output import write
from rwkvctl.data.convert.synth.scans import axes_of, save, scan

OPTIONS = {
    "lesions": "--split-from participants.tsv",
    "contrasts": "--images '*_T1w.nii.gz' --masks '*_seg-manual.nii.gz' --classes background,label_1,label_2,label_3",
}


def _describe(folder: Path) -> None:
    write(folder / "dataset_description.json", json.dumps({"Name": "Hearts", "BIDSVersion": "1.9.0"}))
    about = {"Name": "labels", "BIDSVersion": "1.9.0", "DatasetType": "derivative"}
    write(folder / "derivatives" / "labels" / "dataset_description.json", json.dumps(about))


def write_lesions(folder: Path, n: int, size: int, seed: int) -> None:
    """`sub-01_FLAIR.nii.gz` and `sub-01_label-lesion_mask.nii.gz`; participants.tsv says train, val and test."""
    _describe(folder)
    rows = ["participant_id\tage\tsplit"]
    for number in range(1, n + 1):
        own, name = scan(seed, number, size), f"sub-{number:02d}"
        mask = (own.label == 3).astype(np.uint8)
        save(folder / name / "anat" / f"{name}_FLAIR.nii.gz", own.image, own, axes_of(number))
        write(folder / name / "anat" / f"{name}_FLAIR.json", json.dumps({"EchoTime": 0.1}))
        top = folder / "derivatives" / "labels" / name / "anat"
        save(top / f"{name}_label-lesion_mask.nii.gz", mask, own, axes_of(number + 1))
        rows.append(f"{name}\t{40 + number}\t{'test' if number == n else 'val' if number == n - 1 else 'train'}")
    write(folder / "participants.tsv", "\n".join(rows) + "\n")


def write_contrasts(folder: Path, n: int, size: int, seed: int) -> None:
    """`sub-01_ses-1_T1w.nii.gz` and `_T2w`, whose labels begin with the images' names; two sessions a subject."""
    _describe(folder)
    for number in range(1, n + 1):
        own = scan(seed, number, size)
        subject, session = f"sub-{(number + 1) // 2:02d}", f"ses-{2 - number % 2}"
        for contrast, image in (("T1w", own.image), ("T2w", -own.image)):
            name = f"{subject}_{session}_{contrast}"
            save(folder / subject / session / "anat" / f"{name}.nii.gz", image, own, axes_of(number))
            top = folder / "derivatives" / "labels" / subject / session / "anat"
            save(top / f"{name}_seg-manual.nii.gz", own.label, own, axes_of(number))


def trap_unlabeled(folder: Path) -> Path:
    """A subject without a label: not all of a BIDS data set are drawn."""
    path = min(folder.rglob("derivatives/**/*.nii.gz"))
    path.unlink()
    return folder / "derivatives" / "labels" / "dataset_description.json"
