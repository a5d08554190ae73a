"""PSVFM: placental vessels in fetoscopic video; a sibling folder holds predicted masks that are no ground truth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from rwkvctl.data.convert.synth.output import Array, save
from rwkvctl.data.convert.synth.phantom import paint

FOLDER = "Fetoscopy Placenta Dataset"
CODES = (1, 2, 3, 5, 10, 12)
"""`anonMMM` of videos 1 to 6."""


def write_png(folder: Path, n: int, size: int, seed: int) -> None:
    """`Vessel_segmentation_annotations/videoNN/{images,masks_gt}`: a sixth of `n` a video."""
    for video, code in enumerate(CODES, 1):
        clip = folder / FOLDER / "Vessel_segmentation_annotations" / f"video{video:02d}"
        decoy = folder / FOLDER / "Vessel_registration_unannotated_clips" / f"video{video:02d}"
        for index in range(max(1, n // len(CODES))):
            rng = np.random.default_rng([seed, 7, video, index])
            side = size if video % 2 else size * 3 // 4
            vessels = _vessels(rng, side)
            image = paint(rng, vessels, [[0.8, 0.55, 0.45], [0.55, 0.2, 0.25]], shading=0.15)
            name = f"anon{code:03d}_{100 + 25 * index:05d}"
            save(clip / "images" / f"{name}.png", image)
            save(clip / "masks_gt" / f"{name}_mask.png", np.dstack([vessels * 255] * 3))
            save(decoy / "images" / f"{name}.png", image)
            save(decoy / "masks_predicted" / f"{name}_mask.png", np.zeros_like(image))


def _vessels(rng: np.random.Generator, side: int) -> Array:
    """A mask (side, side) in {0, 1} of three winding tubes."""
    y, x = np.mgrid[:side, :side] / side
    mask = np.zeros((side, side), bool)
    for _ in range(3):
        turn, offset, width = rng.uniform(0, np.pi), rng.uniform(-0.3, 0.3), rng.uniform(0.03, 0.07)
        along = (x - 0.5) * np.cos(turn) + (y - 0.5) * np.sin(turn)
        across = (y - 0.5) * np.cos(turn) - (x - 0.5) * np.sin(turn)
        mask |= np.abs(across - offset - 0.06 * np.sin(9 * along + rng.uniform(0, 6))) < width
    return mask.astype(np.uint8)


def trap_binary_tif(folder: Path) -> Path:
    """A file that another library left beside the masks: no mask of the data set, and no error."""
    path = next(folder.rglob("masks_gt")) / "anon001_00100_binary.tif"
    save(path, np.zeros((48, 48), np.uint8))
    return path


def trap_faint(folder: Path) -> Path:
    """A mask whose meaning depends on the threshold: many values between 0 and 127."""
    path = min(next(p for p in sorted(folder.rglob("masks_gt"))).iterdir())
    mask = np.array(Image.open(path))
    mask[: len(mask) // 4] = 60
    save(path, mask)
    return path


def trap_video(folder: Path) -> Path:
    """A seventh video."""
    (folder / FOLDER / "Vessel_segmentation_annotations" / "video06").rename(
        path := folder / FOLDER / "Vessel_segmentation_annotations" / "video07"
    )
    return path
