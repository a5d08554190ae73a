"""Which files are images and which are masks, by a look at a few of them."""

from __future__ import annotations

from collections.abc import Sequence

from rwkvctl.data.convert import mask_contents
from rwkvctl.data.convert.sources import RawFile

LEAST = 0.5
"""What fits a smaller share of the images is no layout."""
LOOKED_AT = 3
MOST_LABELS = 8
"""A file of so few levels is no photograph where others have far more."""


def may_be_masks(masks: Sequence[RawFile], images: Sequence[RawFile]) -> bool:
    """Whether a few images have more levels than a few masks, as far as they can be read."""
    few = [mask_contents.levels(file) for file in masks[:LOOKED_AT]]
    many = [mask_contents.levels(file) for file in images[:LOOKED_AT]]
    return not max(few) or not min(many) or max(many) > max(MOST_LABELS, *few)


def are_masks(masks: Sequence[RawFile], images: Sequence[RawFile]) -> bool:
    """Whether a few of the files consist of a few values, and those of the other side of many more."""
    few = [mask_contents.levels(file) for file in masks[:LOOKED_AT]]
    many = [mask_contents.levels(file) for file in images[:LOOKED_AT]]
    return 0 < max(few) <= mask_contents.MOST_LEVELS and min(many) > 2 * max(few)
