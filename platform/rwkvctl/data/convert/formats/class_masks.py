"""Folders that look like classes and are images with their masks, which no classifier should learn to tell apart."""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from rwkvctl.data.convert import mask_contents
from rwkvctl.data.convert.name_words import says_mask
from rwkvctl.data.convert.sources import RawFile

_MOST_CLASSES = 20
"""More folders are classes."""
_LEAST = 0.5
"""Of the images, those that have a mask."""
_LOOKED_AT = 3
_CUT = re.compile(r"[_\-. ]|$")


class Masks(NamedTuple):
    """example: `masks/1.png of images/1.png`; sure: whether their names say so too, else they only look like that."""

    example: str
    sure: bool


def found(files: Iterable[tuple[str, RawFile]]) -> Masks | None:
    """Masks among the files of classes (class, file), None where there are none."""
    by_class: dict[str, list[RawFile]] = defaultdict(list)
    for name, file in files:
        by_class[name].append(file)
    if len(by_class) > _MOST_CLASSES:
        return None
    by_stem = {name: {(_above(file), file.stem): file for file in own} for name, own in by_class.items()}
    for image, mask in itertools.product(by_class, repeat=2):
        pairs = _beside(by_stem[image], by_class[mask], image == mask)
        images = len(by_class[image]) - (len(pairs) if image == mask else 0)
        sure = image == mask or (says_mask(mask) and not says_mask(image))
        alike = len(by_class) == 2 and len(pairs) == images == len(by_class[mask])
        if (sure or alike) and len(pairs) >= max(2, _LEAST * images) and _look_so(pairs):
            return Masks(f"{pairs[0][1].path} of {pairs[0][0].path}", sure)
    return None


def _above(file: RawFile) -> str:
    """The folder that has the classes of a part."""
    return file.parent.rpartition("/")[0]


def _beside(
    images: Mapping[tuple[str, str], RawFile], files: Sequence[RawFile], same_folder: bool
) -> list[tuple[RawFile, RawFile]]:
    """Images with the file that is called like them: `1.png` in another folder, or `1_mask.png`."""
    pairs = []
    for file in files:
        heads = [file.stem[: cut.start()] for cut in _CUT.finditer(file.stem)]
        if same_folder:
            heads = [head for head in heads if says_mask(file.stem[len(head) :])]
        image = next((images[_above(file), head] for head in reversed(heads) if (_above(file), head) in images), None)
        if image is not None and image is not file:
            pairs.append((image, file))
    return pairs


def _look_so(pairs: Sequence[tuple[RawFile, RawFile]]) -> bool:
    """Whether masks consist of a few values, and images of many more."""
    some = pairs[:: max(1, len(pairs) // _LOOKED_AT)][:_LOOKED_AT]
    few = max(mask_contents.levels(mask) for _, mask in some)
    return 0 < few <= mask_contents.MOST_LEVELS and min(mask_contents.levels(image) for image, _ in some) > 2 * few
