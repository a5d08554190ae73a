"""What the names of images and of masks have in common, as a part of a pattern: `*` and `*_mask`."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rwkvctl.data.convert.discover import common_beginning
from rwkvctl.data.convert.sources import RawFile

Folders = dict[str, list[RawFile]]
Patterns = tuple[str, str]
"""For `--images` and `--masks`."""
PLAIN = re.compile(r"[^*?\[\]{},]+")
"""Names that can stand in a pattern as they are."""


def around_ids(images: Sequence[str], masks: Sequence[str]) -> tuple[str, str]:
    """`*` and `*_mask`, or what else stands before and behind what the names of both sides share."""
    (front, back), (own_front, own_back) = common_ends(images), common_ends(masks)
    ids = {name[len(front) : len(name) - len(back) or None] for name in images}
    bare = [name[len(own_front) : len(name) - len(own_back) or None] for name in masks]
    if not ids & set(bare) and any(name[: cut.start()] in ids for name in bare for cut in re.finditer("[_-]", name)):
        sign = next(cut[0] for name in bare for cut in re.finditer("[_-]", name) if name[: cut.start()] in ids)
        return f"{front}*{back}", f"{own_front}*{sign}*{own_back}"
    return f"{front}*{back}", f"{own_front}*{own_back}"


def common_ends(names: Sequence[str]) -> tuple[str, str]:
    """What all names begin and end with, up to a sign that parts words."""
    if len(names) < 2:
        return "", ""
    front = re.sub(r"[^\W_]+$", "", common_beginning(names))
    back = common_beginning([name[len(front) :][::-1] for name in names])[::-1]
    cut = re.search(r"[\W_]", back)
    return front, back[cut.start() :] if cut else ""


def joined(stems: Sequence[str]) -> str:
    """`*_{test,train}` of `*_test` and `*_train`; `*` where that cannot be written."""
    if len(set(stems)) == 1:
        return stems[0]
    plain = all(stem.startswith("*") and stem.count("*") == 1 and not set(stem) & set("{},[]?") for stem in stems)
    return "*" + (any_of({stem[1:] for stem in stems}) if plain else "")


def any_of(words: Sequence[str] | set[str]) -> str:
    """`{a,b}`, or the one word."""
    different = sorted(set(words))
    return different[0] if len(different) == 1 else "{" + ",".join(different) + "}"
