"""Which of the arrays in a file are an image and its labels, and what their axes are: by names, shapes and types."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from rwkvctl.data.images.arrays import Entry

LABEL = re.compile(
    r"label|lbl|ma?sk|seg|truth|target|annot|(?<![a-z])(?:gt|y)(?![a-z])|masque|m[aá]scara|маск|标签",
    re.IGNORECASE,
)
IMAGE = re.compile(
    r"ima?ge?|data|scan|vol|raw|input|slice|(?<![a-z])(?:x|ct|mri?|us|oct|t1|t2|flair|bild)(?![a-z])", re.IGNORECASE
)
_EXACT = re.compile(r"labels?|masks?|seg(?:mentation)?|gt|y|ground_?truth|target", re.IGNORECASE)
_SHOWN = 6
MOST_CHANNELS = 32
"""More are slices."""
AXES = ("zyx", "zxy", "yxz", "xyz", "yzx", "xzy")
"""What the axes of a volume may be: z is the one that is sliced, and a slice has its rows along y."""


class Roles(NamedTuple):
    """Names of arrays; question: why they are not known, "" where they are; others: further channels of the image."""

    image: str
    label: str
    question: str = ""
    others: tuple[str, ...] = ()


def plain(shape: Sequence[int]) -> tuple[int, ...]:
    """Without axes of one element, which say nothing."""
    return tuple(n for n in shape if n != 1)


def roles(entries: Sequence[Entry]) -> Roles | None:
    """None where no two arrays fit one another."""
    pairs = list(itertools.permutations(entries, 2))
    fitting = [pair for pair in pairs if _fit(*pair) and _has_plain_label(*pair)] or [p for p in pairs if _fit(*p)]
    if not fitting:
        return None
    named = [pair for pair in fitting if _is_label(pair[1]) and not _is_label(pair[0])]
    for narrower in (
        lambda pair: IMAGE.search(_last(pair[0])),
        lambda pair: _EXACT.fullmatch(_last(pair[1])),
        lambda pair: pair[1].dtype.kind in "biu",
    ):
        if len(named) > 1:
            named = [pair for pair in named if narrower(pair)] or named
    if not named and len(fitting) == 2:  # two arrays of one shape, whichever way round
        whole = [pair for pair in fitting if pair[1].dtype.kind in "biu" and pair[0].dtype.kind == "f"]
        named = whole if len(whole) == 1 else []
    if len(named) == 1:
        return Roles(named[0][0].name, named[0][1].name)
    shown = ", ".join(f"{own.name} {own.shape} {own.dtype}" for own in entries[:_SHOWN])
    first = (named or fitting)[0]
    return Roles(
        first[0].name,
        first[1].name,
        f"which arrays are image and label is yours to say ({shown}): --inside {first[0].name},{first[1].name}",
    )


def _fit(image: Entry, label: Entry) -> bool:
    return label.dtype.itemsize <= 8 and channels(plain(image.shape), plain(label.shape)) is not None


def _has_plain_label(image: Entry, label: Entry) -> bool:
    found = channels(plain(image.shape), plain(label.shape))
    return found is not None and found.label is None


class Channels(NamedTuple):
    """Where an image has its channels, and a label a plane a class: the first or the last axis, or None."""

    image: int | None
    label: int | None


def channels(image: tuple[int, ...], label: tuple[int, ...]) -> Channels | None:
    """Of shapes without axes of one element: the same, or with an axis more for channels, for classes, or for both;
    None where they do not fit."""
    for own, other in itertools.product((None, 0, len(label) - 1), (None, 0, len(image) - 1)):
        found = Channels(other, own)
        place = without(image, found.image)
        if place == without(label, found.label) and len(place) in (2, 3) and _are_few(image, label, found):
            return found
    return None


def without(shape: tuple[int, ...], axis: int | None) -> tuple[int, ...]:
    return shape if axis is None else shape[:axis] + shape[axis + 1 :]


def _are_few(image: tuple[int, ...], label: tuple[int, ...], found: Channels) -> bool:
    return all(axis is None or own[axis] <= MOST_CHANNELS for own, axis in zip((image, label), found, strict=True))


def _is_label(entry: Entry) -> bool:
    return LABEL.search(_last(entry)) is not None


def _last(entry: Entry) -> str:
    return entry.name.rpartition("/")[2]


def axes_of(shapes: Iterable[tuple[int, ...]]) -> tuple[str, bool]:
    """The axes of volumes, and whether their shapes tell them: slices are square, or the depth alone differs from
    volume to volume, or there are at most half as many slices as rows and columns."""
    shapes = list(shapes)
    odd: Counter[int] = Counter()
    for shape in shapes:
        alone = [n for n in range(3) if shape.count(shape[n]) == 1]
        if len(alone) == 1:
            odd[alone[0]] += 1
    if len(odd) == 1:
        return _with_depth(next(iter(odd))), True
    vary = [n for n in range(3) if len({shape[n] for shape in shapes}) > 1]
    if not odd and len(vary) == 1:
        return _with_depth(vary[0]), True
    if all(len(set(shape)) == 1 for shape in shapes):
        return _with_depth(0), True
    least = [shape.index(min(shape)) for shape in shapes]
    thin = all(2 * min(shape) <= sorted(shape)[1] for shape in shapes)
    return _with_depth(Counter(least).most_common(1)[0][0]), thin and len(set(least)) == 1


def _with_depth(axis: int) -> str:
    return ("zyx", "yzx", "yxz")[axis]
