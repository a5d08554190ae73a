"""An image with masks for the folders of `pairs`, always the same for the same number and seed."""

from __future__ import annotations

import numpy as np

from rwkvctl.data.convert.synth.output import Array
from rwkvctl.data.convert.synth.phantom import blobs, paint

COLOURS = [[0.3, 0.25, 0.25], [0.65, 0.5, 0.4], [0.4, 0.5, 0.7], [0.5, 0.7, 0.35]]
Truth = dict[str, Array]
"""Class ids (H, W) by the path of the image that they are of."""


def sample(number: int, size: int, seed: int, classes: int = 1) -> tuple[Array, list[Array]]:
    """An image (H, W, 3) and the mask (H, W) of each class."""
    rng = np.random.default_rng([seed, number])
    shape = (size * 4 // 5, size)
    masks = [blobs(rng, shape) for _ in range(classes)]
    return paint(rng, class_ids(masks), COLOURS[: classes + 1]), masks


def class_ids(masks: list[Array]) -> Array:
    """The masks of classes 1, 2, ... in one, later ones over earlier ones."""
    ids = np.zeros(masks[0].shape, np.uint8)
    for class_id, mask in enumerate(masks, 1):
        ids[mask] = class_id
    return ids
