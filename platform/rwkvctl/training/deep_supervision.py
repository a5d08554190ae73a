"""Which logits deep supervision compares with the mask, for a network that has them at several scales."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Literal

import torch.nn.functional as F
from torch import Tensor


def supervised(maps: Sequence[Tensor], how: Literal["none", "sum", "mutation"]) -> list[Tensor]:
    """Logits (B, C, H, W), each of which gets a loss of its own; the losses are added up.

    Args:
        maps: the logits of every scale, all of one size.
        how: "sum" takes them as they are (M. M. Rahman, R. Marculescu, "Medical Image Segmentation via Cascaded
            Attention Decoding", WACV 2023). "mutation" takes the sum of every non-empty subset, 15 of 4 scales (the
            same, "Multi-scale Hierarchical Vision Transformer with Cascaded Attention Decoding", MIDL 2023; EMCAD).
    """
    if how != "mutation":
        return list(maps)
    wide = [x if x.dtype.itemsize >= 4 else x.float() for x in maps]  # before they are added up
    subsets = (subset for size in range(1, len(wide) + 1) for subset in combinations(wide, size))
    return [sum(rest, start=first) for first, *rest in subsets]


def at_scales(maps: Sequence[Tensor], target: Tensor) -> list[tuple[Tensor, Tensor, float]]:
    """Of each map its logits, the mask at its scale, and the weight of its loss; the weights add up to 1.

    Each scale counts half of the one above it, as in nnU-Net, which counts its coarsest not at all: of such networks it
    is left out of `maps`.

    Args:
        maps: logits (B, C, [D_i,] H_i, W_i), the finest first.
        target: (B, [D,] H, W) class ids.
    """
    weights = [0.5**level for level in range(len(maps))]
    found = []
    for logits, weight in zip(maps, weights, strict=True):
        shape = logits.shape[2:]
        own = target
        if shape != target.shape[1:]:
            own = (
                F.interpolate(target.unsqueeze(1).float(), size=shape, mode="nearest-exact").squeeze(1).to(target.dtype)
            )
        found.append((logits, own, weight / sum(weights)))
    return found
