"""ISIC 2017: three official parts, superpixels beside the images."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from rwkvctl.data.convert.synth.output import save, write
from rwkvctl.data.convert.synth.phantom import blobs, paint

PARTS = {"Training": 0, "Validation": 12_000, "Test_v2": 16_000}


def write_official(folder: Path, n: int, size: int, seed: int) -> None:
    """`ISIC-2017_<Part>_Data` and `..._Part1_GroundTruth`: `n` images to train on, a third of that in other parts."""
    for part, first in PARTS.items():
        images = folder / f"ISIC-2017_{part}_Data"
        truths = folder / f"ISIC-2017_{part}_Part1_GroundTruth"
        rows = ["image_id,age_approximate,sex"]
        for number in range(first, first + (n if part == "Training" else max(1, n // 3))):
            rng = np.random.default_rng([seed, 4, number])
            height, width = [(size * 3 // 4, size), (size * 2 // 3, size), (size, size * 3 // 2)][number % 3]
            lesion = blobs(rng, (height, width)).astype(np.uint8)
            skin = np.array([0.8, 0.62, 0.55]) + rng.uniform(-0.1, 0.1, 3)
            image = paint(rng, lesion, [skin, skin * rng.uniform(0.4, 0.7)], shading=0.1)
            y, x = np.mgrid[:height, :width] // 8
            superpixels = np.dstack([(y * (width // 8 + 1) + x) % 256, y // 32, np.zeros_like(y)]).astype(np.uint8)
            name = f"ISIC_{number:07d}"
            save(images / f"{name}.jpg", image, quality=92)
            save(images / f"{name}_superpixels.png", superpixels)
            save(truths / f"{name}_segmentation.png", lesion * 255)
            rows.append(f"{name},{rng.integers(20, 80)},{rng.choice(['female', 'male', 'unknown'])}")
        write(images / f"{images.name}_metadata.csv", "\n".join(rows) + "\n")


def trap_unpaired(folder: Path) -> Path:
    """An image without its mask."""
    (folder / "ISIC-2017_Test_v2_Part1_GroundTruth" / "ISIC_0016000_segmentation.png").unlink()
    return folder / "ISIC-2017_Test_v2_Data" / "ISIC_0016000.jpg"


def trap_part(folder: Path) -> Path:
    """A training image that is in the test part as well, with its mask."""
    for kind, suffix in (("Part1_GroundTruth", "_segmentation.png"), ("Data", ".jpg")):
        name = f"ISIC_0000000{suffix}"
        path = folder / f"ISIC-2017_Test_v2_{kind}" / name
        path.write_bytes((folder / f"ISIC-2017_Training_{kind}" / name).read_bytes())
    return path
