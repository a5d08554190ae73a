"""Patterns that images and masks may be paired by, as folders and names of a source suggest them.

Which of two folders, endings or names are the masks, a word says (`Masken`, `_label`), or else a look at a few files.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from rwkvctl.data.convert import mask_contents
from rwkvctl.data.convert.name_words import says_mask
from rwkvctl.data.convert.sources import RawFile
from rwkvctl.data.guess import folder_layouts, name_layouts, numbered_layouts
from rwkvctl.data.guess.folder_layouts import MOST_TRIES
from rwkvctl.data.guess.looks import LOOKED_AT, MOST_LABELS
from rwkvctl.data.guess.stems import Folders, Patterns
from rwkvctl.data.images.files import EXTENSIONS


def candidates(files: Sequence[RawFile]) -> Iterator[Patterns]:
    """Patterns for images and masks, the likelier first."""
    folders: Folders = {}
    for file in files:
        folders.setdefault(file.parent, []).append(file)
    ways = (
        folder_layouts.of_folders,
        folder_layouts.of_trees,
        folder_layouts.of_numbered_folders,
        folder_layouts.of_part_names,
        folder_layouts.of_parts,
        folder_layouts.of_leaves,
        name_layouts.of_suffixes,
        name_layouts.of_two_suffixes,
        name_layouts.of_beginnings,
        name_layouts.of_endings,
        name_layouts.of_equal_names,
    )
    made = dict.fromkeys(patterns for way in ways for patterns in itertools.islice(way(folders), MOST_TRIES // 2))
    yield from map(_with_endings, list(made)[:MOST_TRIES])


def by_numbers(files: Sequence[RawFile]) -> Iterator[Patterns]:
    """Patterns of what numbers tell apart, in whatever folders: `Training400/*/*`, `Annotation-Training400/Cup/*/*`."""
    found = numbered_layouts.kinds(files)
    if len(found) < 2:
        return
    most = {kind: max(map(mask_contents.levels, kind.some[:LOOKED_AT])) for kind in found}
    few = mask_contents.MOST_LEVELS
    masks = [kind for kind in found if most[kind] <= (few if says_mask(kind.words) else 2)]
    masks = masks or [kind for kind in found if 0 < most[kind] <= few and 2 * most[kind] < max(most.values())]
    fewest = MOST_LABELS if max(most.values()) > 2 * MOST_LABELS else 2
    images = [kind for kind in found if kind not in masks and most[kind] > fewest]
    masks.sort(key=lambda kind: not says_mask(kind.words))
    told = numbered_layouts.patterns(images, masks, lambda file: mask_contents.levels(file) > 2)
    yield from map(_with_endings, itertools.islice(told, MOST_TRIES // 2))


def _with_endings(patterns: Patterns) -> Patterns:
    """`*.ah` as `*.ah.*`, since what stands behind a pattern's last dot is an ending."""
    images, masks = (text if _ends(text.rpartition("/")[2]) else f"{text}.*" for text in patterns)
    return images, masks


def _ends(name: str) -> bool:
    _, dot, ending = name.rpartition(".")
    return not dot or f".{ending}".lower() in EXTENSIONS
