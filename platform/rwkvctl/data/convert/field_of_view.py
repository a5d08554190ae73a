"""Masks that show the field of view of a camera, not labels: the same large shape in every file.

Data sets of retinal photographs have such a folder, often called `mask/`, beside that of the labels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rwkvctl.base.errors import BadFile
from rwkvctl.data.convert.raw_files import RawFile
from rwkvctl.data.images import files as image_files
from rwkvctl.data.images.masks import read_mask

LOOKED_AT = 12
FEWEST = 4
SIDE = 64
SAME = 0.97
"""Of two fields of view, the part of their union that they share, at least."""
LEAST_SHARE = 0.35


def found(masks: Sequence[RawFile]) -> str:
    """What such masks show, to be put into a message; "" when they are others, or too few to tell."""
    masks = [file for file in masks if file.suffix in image_files.EXTENSIONS]
    chosen = [masks[i] for i in np.linspace(0, len(masks) - 1, min(len(masks), LOOKED_AT)).astype(int)] if masks else []
    shapes = []
    for file in chosen:
        try:
            values = read_mask(file.read()).values
        except (BadFile, ValueError):  # said when it is converted
            continue
        shapes.append(image_files.resize_nearest((values > values.max() / 2).astype(np.uint8), SIDE, SIDE) > 0)
    if len(shapes) < FEWEST:
        return ""
    usual = np.mean(shapes, axis=0) > 0.5
    share = float(usual.mean())
    if not LEAST_SHARE <= share < 1 or any((own & usual).sum() < SAME * (own | usual).sum() for own in shapes):
        return ""
    return f"the same shape in all of {len(shapes)} files ({100 * share:.1f} % of the picture): a field of view"
