"""The colour of every class: in overlays, in the palettes of mask PNGs, in figures."""

from __future__ import annotations

import colorsys
from functools import cache

import numpy as np
from numpy.typing import NDArray

DISTINCT = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (204, 121, 167), (213, 94, 0), (0, 114, 178),
    (170, 255, 85),
)  # fmt: skip
"""Classes 1 to 8 in RGB: distinct on grey, also for the colour-blind (Okabe and Ito)."""


@cache
def palette() -> NDArray[np.uint8]:
    """(256, 3) RGB by class id: 0 black, 1 to 8 as above, then hues a golden angle apart; 255 (ignored) is white."""
    colours = [(0, 0, 0), *DISTINCT]
    for class_id in range(len(colours), 255):
        red, green, blue = colorsys.hsv_to_rgb(class_id * 0.618034 % 1, 0.45 + 0.5 * (class_id % 2), 0.95)
        colours.append((round(255 * red), round(255 * green), round(255 * blue)))
    table = np.array([*colours, (255, 255, 255)], np.uint8)
    table.setflags(write=False)
    return table
