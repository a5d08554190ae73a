"""ACDC: cardiac MR as h5 slices and volumes, and as the raw NIfTI release."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from rwkvctl.data.convert.synth import phantom
from rwkvctl.data.convert.synth.output import save_nifti, write

DEPTH = 4


def write_h5(folder: Path, n: int, size: int, seed: int) -> None:
    """`ACDC_training_slices` and `ACDC_training_volumes` of `n` patients, as in WSL4MIS."""
    phantom.write_volumes(folder, n, size, DEPTH, seed)


def write_nifti(folder: Path, n: int, size: int, seed: int) -> None:
    """`database/training/patientNNN` with the cine, two frames, their masks and `Info.cfg`; two testing patients."""
    parts = [("training", number) for number in phantom.acdc_patients(n)] + [("testing", 101), ("testing", 102)]
    for part, number in parts:
        rng = np.random.default_rng([seed, number])
        heart = phantom.heart_anatomy(rng)
        systole = int(rng.integers(6, 13))
        name = f"patient{number:03d}"
        own = folder / "database" / part / name
        affine = np.diag([*[-round(rng.uniform(0.7, 1.95), 4)] * 2, float(rng.choice([5, 10])), 1])  # ITK's axes
        cine = []
        for frame in range(1, systole + 2):
            squeeze = 1 - 0.25 * np.sin(np.pi / 2 * (frame - 1) / (systole - 1))
            image, label = phantom.heart_volume(heart, size, DEPTH, squeeze, rng)
            grey = (image * 400).astype(np.int16).transpose(2, 1, 0)  # (z, y, x) -> [x, y, z]
            cine.append(grey)
            if frame in (1, systole):
                save_nifti(own / f"{name}_frame{frame:02d}.nii.gz", grey, affine)
                save_nifti(own / f"{name}_frame{frame:02d}_gt.nii.gz", label.transpose(2, 1, 0), affine)
        save_nifti(own / f"{name}_4d.nii.gz", np.stack(cine, axis=-1), affine)
        group = rng.choice(["DCM", "HCM", "MINF", "NOR", "RV"])
        info = {"ED": 1, "ES": systole, "Group": group, "Height": 170.0, "NbFrame": len(cine), "Weight": 70.0}
        write(own / "Info.cfg", "".join(f"{key}: {value}\n" for key, value in info.items()))


def trap_missing_frame(folder: Path) -> Path:
    """A patient without one of its two frames."""
    frames = sorted(path for path in folder.rglob("patient031_frame*") if "slice" not in path.name)
    frames[-1].unlink()
    return frames[-1]
