"""The generic form `folder`: one's own images and masks."""

from __future__ import annotations

from pathlib import Path

from rwkvctl.data.convert.synth import phantom


def write_pairs(folder: Path, n: int, size: int, seed: int) -> None:
    """`images/N.jpg` and `masks/N.png`."""
    phantom.write_polyps(folder, n, size, seed)


def trap_unpaired(folder: Path) -> Path:
    """An image without its mask."""
    (folder / "masks" / "3.png").unlink()
    return folder / "images" / "3.jpg"
