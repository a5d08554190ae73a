"""What the axes of stacked images and their labels are, told by their shapes: `nyxc`, where n counts the images."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from rwkvctl.data.convert.array_roles import MOST_CHANNELS

KINDS = ("nyx", "nyxc", "ncyx", "nzyx", "nzyxc", "nczyx")
_LEAST_SIDE = 8
"""Of an image: a shorter axis is none of its rows or columns."""
_FEW = 4
"""So many may be channels, or slices."""
COLOURS = 3

Shape = Sequence[int]


class Axes(NamedTuple):
    """Of images and labels. question: what else the shapes may mean, "" where nothing."""

    image: str
    label: str
    question: str = ""


def sizes(axes: str, shape: Shape) -> dict[str, int]:
    return dict(zip(axes, shape, strict=True))


def of_pair(image: Shape, label: Shape) -> list[Axes]:
    """What a pair of shapes may mean, the likeliest first; [] where they do not fit."""
    found = [
        Axes(own, other)
        for own, other in itertools.product(KINDS, KINDS)
        if len(own) == len(image) and len(other) == len(label) and _fit(sizes(own, image), sizes(other, label))
    ]
    found.sort(key=lambda own: _odds(own, image, label))
    if not found:
        return []
    first = found[0]
    channels = {"c": 1} | sizes(first.image, image)
    if any(_odds(own, image, label) == _odds(first, image, label) for own in found[1:]):
        others = " or ".join(f"--axes {own.image}" for own in found[1:] if own.image != first.image)
        return [first._replace(question=f"{tuple(image)} is taken for {first.image}; it may be {others}"), *found[1:]]
    is_told = len(image) == 5 or ("c" in first.image and channels["c"] in (1, COLOURS))
    if is_told:
        return found
    what = "volumes" if "z" in first.image else "images"
    question = (
        f"{image[0]} of {tuple(image)} are taken for {what}; are they slices of one volume, give each volume a file"
    )
    return [first._replace(question=question), *found[1:]]


def _fit(image: Mapping[str, int], label: Mapping[str, int]) -> bool:
    sides = min(image["y"], image["x"]) >= _LEAST_SIDE
    few = all(1 <= own.get("c", 1) <= MOST_CHANNELS for own in (image, label))
    return sides and few and all(image.get(axis) == label.get(axis) for axis in "nzyx")


def _odds(own: Axes, image: Shape, label: Shape) -> tuple[bool, ...]:
    """To be sorted by: one channel; channels that are few, and slices that are many; no channels of labels."""
    channels = [sizes(axes, shape).get("c", 1) for axes, shape in ((own.image, image), (own.label, label))]
    depth = sizes(own.image, image).get("z", MOST_CHANNELS)
    together = own.image.index("c") == own.label.index("c") if "c" in own.image and "c" in own.label else True
    return max(channels) > 1, max(channels) > _FEW or depth <= _FEW, not together


def of_images(shape: Shape) -> list[str]:
    """The axes of images that have one label each; of (N, H, W, C) also (N, C, H, W), the likelier first."""
    if len(shape) == 3:
        return ["nyx"]
    found = [own for own in ("nyxc", "ncyx") if len(shape) == 4 and sizes(own, shape)["c"] in (1, COLOURS)]
    return [own for own in found if min(sizes(own, shape)[axis] for axis in "yx") >= _LEAST_SIDE]


def as_told(given: str, image: Shape, label: Shape) -> Axes | None:
    """The axes of both by those of the images that a user gives; None where they do not fit."""
    if sorted(given.replace("c", "").replace("z", "")) != ["n", "x", "y"] or len(set(given)) < len(given):
        return None
    if set(given) - set("nzyxc") or len(given) != len(image):
        return None
    plain = given.replace("c", "")
    for own in dict.fromkeys((plain, given, f"{plain}c", "nc" + plain.replace("n", ""))):
        if len(own) != len(label):
            continue
        both = sizes(given, image), sizes(own, label)
        if all(both[0].get(axis) == both[1].get(axis) for axis in "nzyx"):
            return Axes(given, own)
    return None
