"""What is done to a finished mask: a class is one connected part, and has no holes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.uint8]


def cleaned_up(mask: Mask, *, largest_component: bool, fill_holes: bool) -> Mask:
    """A new mask (H, W) or (D, H, W). Parts touch by their sides, not by corners; holes are filled last, and only
    where they are background, so that no class is drawn over another. Each class is looked at in its own box."""
    from scipy import ndimage

    cleaned = mask.copy()
    for class_id, box in enumerate(ndimage.find_objects(mask), start=1):
        if box is None:
            continue
        own, kept = mask[box] == class_id, cleaned[box]
        if largest_component:
            part = largest(own)
            kept[own & ~part] = 0
            own = part
        if fill_holes:
            kept[ndimage.binary_fill_holes(own) & (kept == 0)] = class_id
    return cleaned


def largest(own: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The largest connected part; of several of one size the first."""
    from scipy import ndimage

    parts, count = ndimage.label(own)
    if count < 2:
        return own
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    return np.asarray(parts == sizes.argmax())
