"""Which logits deep supervision compares with the mask, for a network that has them at several scales."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Literal

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
