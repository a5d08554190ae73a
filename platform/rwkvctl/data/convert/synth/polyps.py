"""The picture that ClinicDB, ColonDB and Kvasir-SEG share."""

from __future__ import annotations

import numpy as np

from rwkvctl.data.convert.synth.output import Array
from rwkvctl.data.convert.synth.phantom import blobs, paint


def polyp(key: list[int], shape: tuple[int, int]) -> tuple[Array, Array]:
    """image (H, W, 3) and mask (H, W) in {0, 255}: one or two bright blobs on mucosa; a function of `key`."""
    rng = np.random.default_rng(key)
    mask = blobs(rng, shape).astype(np.uint8)
    tissue = np.array([0.65, 0.35, 0.3]) + rng.uniform(-0.08, 0.08, 3)
    return paint(rng, mask, [tissue, tissue + np.array([0.18, 0.14, 0.1])]), mask * 255
