"""Probabilities in a file that `numpy.load` reads, written piece by piece."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from rwkvctl.base.files import atomic_open
from rwkvctl.base.on_disk import release

NAME = "probabilities"
PIECE = 64 << 20
"""Bytes that are copied at once."""
LEVEL = 1
"""Of the compression: numpy's 6 takes 1.6 times as long, and makes files of probabilities no smaller."""


def write_probabilities(target: Path, probabilities: NDArray[np.float16]) -> None:
    """Write float16 (classes, *mask's shape) as `probabilities`, atomically. It may be a view with any strides, and
    larger than memory."""
    header = {"descr": npy.dtype_to_descr(probabilities.dtype), "fortran_order": False, "shape": probabilities.shape}
    with (
        atomic_open(target) as file,
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=LEVEL) as archive,
        archive.open(f"{NAME}.npy", "w", force_zip64=True) as entry,
    ):
        npy.write_array_header_2_0(entry, header)
        for of_class in probabilities:
            rows = max(1, PIECE // max(1, of_class[0].nbytes))
            for start in range(0, len(of_class), rows):
                entry.write(of_class[start : start + rows].tobytes())
                release(of_class)
