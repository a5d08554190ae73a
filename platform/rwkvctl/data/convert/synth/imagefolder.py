"""The generic form `imagefolder`: one folder a class."""

from __future__ import annotations

from pathlib import Path

from rwkvctl.data.convert.synth import phantom


def write_textures(folder: Path, n: int, size: int, seed: int) -> None:
    """`train/<class>/*.jpg` and `val/<class>/*.jpg`: four classes, `n` images to train on."""
    phantom.write_textures(folder, 4, max(2, n // 4), size, seed)


def trap_class(folder: Path) -> Path:
    """A class in val/ that train/ does not have."""
    return (folder / "val" / "texture_03").rename(folder / "val" / "unknown")
