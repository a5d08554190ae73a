"""What is done to a finished mask: a class is one connected part, and has no holes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.uint8]


def cleaned_up(mask: Mask, *, largest_component: bool, fill_holes: bool) -> Mask:
    """A new mask (H, W) or (D, H, W). Parts touch by their sides, not by corners; holes are filled last, and only
    where they are background, so that no class is drawn over another."""
    from scipy import ndimage

    cleaned = mask.copy()
    for class_id in np.unique(mask[mask > 0]):
        own = mask == class_id
        if largest_component:
            own = largest(own)
            cleaned[(mask == class_id) & ~own] = 0
        if fill_holes:
            cleaned[ndimage.binary_fill_holes(own) & (cleaned == 0)] = class_id
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
