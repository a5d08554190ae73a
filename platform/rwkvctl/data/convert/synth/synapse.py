"""Synapse / BTCV: abdominal CT as TransUNet's npz and h5, with two other label orders, and as the raw NIfTI release.

A case is the same body in every form: raw case 5 becomes, by the window and the mapping, the slices of case0005.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from rwkvctl.data.convert.synth.output import Array, save_h5, save_nifti, write
from rwkvctl.data.convert.synth.phantom import smooth_noise

TRAIN_CASES = (5, 6, 7, 9, 10, 21, 23, 24, 26, 27, 28, 30, 31, 33, 34, 37, 39, 40)
TEST_CASES = (8, 22, 38, 36, 32, 2, 29, 3, 1, 4, 25, 35)
DEPTH = 10
AFFINE = np.array([[-0.75, 0, 0, 172.9], [0, 0.75, 0, -179.3], [0, 0, 3, -368.0], [0, 0, 0, 1]])

ORGANS = {  # raw label: centre (x, y, z), radii (x, y, z), as shares of the volume's sides, HU
    6: ((0.30, 0.46, 0.5), (0.20, 0.20, 0.50), 110),  # liver
    1: ((0.80, 0.55, 0.6), (0.09, 0.13, 0.40), 130),  # spleen
    7: ((0.64, 0.34, 0.6), (0.13, 0.09, 0.40), 50),  # stomach
    2: ((0.32, 0.74, 0.4), (0.07, 0.07, 0.40), 190),  # right kidney
    3: ((0.69, 0.75, 0.4), (0.07, 0.07, 0.40), 190),  # left kidney
    11: ((0.54, 0.47, 0.5), (0.10, 0.05, 0.30), 80),  # pancreas
    4: ((0.42, 0.32, 0.4), (0.06, 0.06, 0.30), 5),  # gallbladder
    8: ((0.53, 0.64, 0.5), (0.05, 0.05, 2.00), 250),  # aorta
    9: ((0.44, 0.63, 0.5), (0.04, 0.04, 2.00), 160),  # inferior vena cava
    5: ((0.52, 0.56, 0.9), (0.03, 0.03, 0.30), 40),  # oesophagus
    10: ((0.44, 0.52, 0.5), (0.04, 0.03, 0.20), 150),  # portal and splenic vein
    12: ((0.39, 0.62, 0.6), (0.03, 0.03, 0.20), 70),  # right adrenal gland
    13: ((0.62, 0.62, 0.6), (0.03, 0.03, 0.20), 70),  # left adrenal gland
}
TRANSUNET = {8: 1, 4: 2, 3: 3, 2: 4, 6: 5, 11: 6, 1: 7, 7: 8}
SAMED = {1: 1, 2: 2, 3: 3, 4: 4, 6: 5, 7: 6, 8: 7, 11: 8}
THIRTEEN = {raw: raw for raw in range(1, 14)}


def write_transunet(folder: Path, n: int, size: int, seed: int) -> None:
    """`train_npz/caseXXXX_sliceYYY.npz`, `test_vol_h5/caseXXXX.npy.h5` and lists: two cases in three to train on."""
    _write_preprocessed(folder, n, size, seed, TRANSUNET)


def write_samed(folder: Path, n: int, size: int, seed: int) -> None:
    """The same files with the label order of SAMed."""
    _write_preprocessed(folder, n, size, seed, SAMED)


def write_cascade(folder: Path, n: int, size: int, seed: int) -> None:
    """The same files with all 13 labels, as CASCADE and EMCAD keep them."""
    _write_preprocessed(folder, n, size, seed, THIRTEEN)


def write_nifti(folder: Path, n: int, size: int, seed: int) -> None:
    """`RawData/Training/{img,label}` in Hounsfield units with 13 labels; `RawData/Testing/img` without labels."""
    root = folder / "RawData"
    train, test = _cases(n)
    for case in [*train, *test, 61]:
        hounsfield, label = abdomen(case, size, seed)
        # TransUNet's (z, row, column) is [z, x, -y] of the array that the NIfTI holds.
        image, truth = (volume[:, :, ::-1].transpose(1, 2, 0) for volume in (hounsfield, label))
        part = "Training" if case <= 40 else "Testing"
        save_nifti(root / part / "img" / f"img{case:04d}.nii.gz", image, AFFINE)
        if part == "Training":
            save_nifti(root / part / "label" / f"label{case:04d}.nii.gz", truth, AFFINE)


def _cases(n: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    test = max(1, min(len(TEST_CASES), n // 3))
    return TRAIN_CASES[: n - test], TEST_CASES[:test]


def _write_preprocessed(folder: Path, n: int, size: int, seed: int, mapping: dict[int, int]) -> None:
    root = folder / "Synapse"
    lookup = np.zeros(14, np.float32)
    lookup[list(mapping)] = list(mapping.values())
    train, test = _cases(n)
    slices: list[str] = []
    for case in (*train, *test):
        hounsfield, raw = abdomen(case, size, seed)
        image = ((np.clip(hounsfield, -125, 275) + 125) / 400).astype(np.float32)
        label = lookup[raw]
        if case in test:
            save_h5(root / "test_vol_h5" / f"case{case:04d}.npy.h5", image=image, label=label)
            continue
        for z in range(len(image)):
            slices.append(f"case{case:04d}_slice{z:03d}")
            path = root / "train_npz" / f"{slices[-1]}.npz"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.savez(path, image=image[z], label=label[z])
    lists = root / "lists" / "lists_Synapse"
    write(lists / "train.txt", "\r\n".join(slices))  # Windows line ends, and none at the end of the file
    write(lists / "test_vol.txt", "\n".join(f"case{case:04d}" for case in test) + "\n")
    write(lists / "all.lst", "\n".join(f"case{case:04d}.npy.h5" for case in (*train, *test)) + "\n")


def abdomen(case: int, size: int, seed: int) -> tuple[Array, Array]:
    """CT of a body: Hounsfield units (D, size, size) int16, raw labels 0..13 uint8. Case 9 has no gallbladder."""
    rng = np.random.default_rng([seed, 9, case])
    z, y, x = np.mgrid[:DEPTH, :size, :size] / np.array([DEPTH, size, size])[:, None, None, None]
    hounsfield = np.where(np.hypot((x - 0.5) / 0.46, (y - 0.55) / 0.38) < 1, 20.0, -1000.0)
    hounsfield[np.hypot((x - 0.5) / 0.06, (y - 0.8) / 0.06) < 1] = 700  # a vertebra
    label = np.zeros(hounsfield.shape, np.uint8)
    for organ, (centre, radii, level) in ORGANS.items():
        if case == 9 and organ == 4:
            continue
        shift = rng.normal(0, 0.012, 3)
        grow = rng.uniform(0.9, 1.1)
        axes = zip((x, y, z), centre, shift, radii, strict=True)
        inside = sum(((axis - at - by) / (radius * grow)) ** 2 for axis, at, by, radius in axes) < 1
        label[inside] = organ
        hounsfield[inside] = level + rng.normal(0, 8)
    hounsfield += 12 * smooth_noise(rng, hounsfield.shape, size // 8) + rng.normal(0, 15, hounsfield.shape)
    return hounsfield.astype(np.int16), label


def trap_missing_slice(folder: Path) -> Path:
    """A slice of a case that is not there; of the raw release, its labels."""
    path = min([*folder.rglob("case0005_slice*.npz"), *folder.rglob("label0005.nii.gz")])
    path.unlink()
    return path
