"""Which `--classes` reads masks that are not of two classes, by what a few of them hold.

What a class is called no pixel says: there the names are made up.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwkvctl.base.errors import BadFile, UserError
from rwkvctl.data.convert import class_table
from rwkvctl.data.convert.class_table import ClassTable
from rwkvctl.data.convert.formats.by_table import ByTable
from rwkvctl.data.convert.formats.folder import ClassIds
from rwkvctl.data.convert.mask_contents import MOST_CLASSES, MOST_LEVELS, Content, Key, as_colour, keys_of, levels
from rwkvctl.data.convert.sources import RawFile, Source

MOST_OPENED = 24
PICTURES = "pictures"
MOST_EDGE = 0.9
"""A value that more of a mask's edges have is around what it shows."""


@dataclass
class Meaning:
    """found: what masks hold, in words; classes: what `--classes` must say, "" where nothing; question: what they leave
    open; problem: why they are no labels, or ""."""

    found: str
    classes: str = ""
    question: str = ""
    problem: str = ""


def meaning(source: Source, contents: Sequence[Content], several: str) -> Meaning:
    """Of masks that are not all of two classes. several: how many of them were opened, in words."""
    colours = [one for one in contents if one.is_colour]
    if colours and len(colours) < len(contents):  # some masks show only what is grey of the colours
        contents = [as_colour(one) for one in contents]
    keys = keys_of(contents)
    pictures = [one for one in contents[:MOST_OPENED] if levels(one.file) > MOST_LEVELS]
    if not colours and _are_objects(contents):
        return Meaning(
            f"numbers of single objects, up to {keys[-1][0]} in one mask, {several}",
            "background=0,object=1-65535",
            "numbers in masks are taken for objects of one class; are they classes, give --classes a,b,c",
        )
    if len(keys) > MOST_CLASSES or len(pictures) > len(contents[:MOST_OPENED]) / 2:
        kind = "colour" if colours else "value"
        problem = f"{contents[0].file}: has too many {kind}s for labels; give the pattern of the masks"
        return Meaning(f"{PICTURES}, {several}", problem=problem)
    lossy = ", JPEG" if any(one.lossy for one in contents) else ""
    found = f"{len(keys)} {_kind(contents, keys)} ({listed(keys)}{lossy}), {several}"
    return Meaning(found, *_classes(source, contents, keys))


def _kind(contents: Sequence[Content], keys: Sequence[Key]) -> str:
    if len(keys[0]) > 1:
        return "colours"
    if all(one.palette for one in contents):
        return "indices of a palette"
    return "class ids" if keys == [(n,) for n in range(len(keys))] else "grey values"


def _are_objects(contents: Sequence[Content]) -> bool:
    """Whether masks count their objects: each from 1 on without a gap, with as many as there are in each."""
    most = [max(one.counts)[0] for one in contents if one.counts]
    whole = all(len(one.counts) >= max(one.counts)[0] for one in contents if one.counts)
    return whole and max(most) > 12 and len(set(most)) > min(3, len(most) - 1)


def _classes(source: Source, contents: Sequence[Content], keys: Sequence[Key]) -> tuple[str, str]:
    """What `--classes` must say, and how one gets names into it."""
    for file in source.files:
        if (table := _table_in(file)) and all(is_read(ByTable(table), one) for one in contents):
            if file.kind == "file":
                return file.data, ""
            return ",".join(_entries(table)), ""
    background = _background(contents, keys)
    others = [key for key in keys if key != background]
    white = (
        "white is around the edges of most masks and is taken for the background; " if max(background) == 255 else ""
    )
    names = ["background", *(f"class{n}" for n in range(1, len(others) + 1))]
    advice = f"{white}call the classes by their names instead of class1{', ...' if len(others) > 1 else ''}"
    by_order = len(keys[0]) == 1 and list(keys) == [(n,) for n in range(len(keys))]
    if by_order and all(is_read(ClassIds(len(keys)), one) for one in contents):
        return ",".join(names), f"{advice}, in the order of their values"
    entries = [f"{name}={shown(key)}" for name, key in zip(names, [background, *others], strict=True)]
    lines = " ".join(f"{name},{shown(key)}" for name, key in zip(names, [background, *others], strict=True))
    return ",".join(entries), f"{advice}; or --classes classes.csv with a line each: {lines}"


def _background(contents: Sequence[Content], keys: Sequence[Key]) -> Key:
    """White where it is around the edges of most masks; else zero or black; without it what most pixels have."""
    white, black = (255,) * len(keys[0]), (0,) * len(keys[0])
    if white in keys and _is_around(contents, white):
        return white
    near = [key for key in keys if np.linalg.norm(np.subtract(key, black)) <= 16] if contents[0].lossy else [black]
    found = next((key for key in near if key in keys), None)
    total = Counter[Key]()
    for one in contents:
        total.update(one.counts)
    return found or max(keys, key=lambda key: total[key])


def _is_around(contents: Sequence[Content], key: Key) -> bool:
    seen = [edges(one.pixels) for one in contents if one.pixels.size]
    around = [own for own in seen if (own == np.array(key, own.dtype)).all(axis=-1).mean() > MOST_EDGE]
    return len(around) > len(seen) / 2


def edges(pixels: NDArray[Any]) -> NDArray[Any]:
    """The outermost pixels (N, channels) of a mask (H, W) or (H, W, channels)."""
    own = np.atleast_3d(pixels)
    return np.concatenate([own[0], own[-1], own[:, 0], own[:, -1]])


def _table_in(file: RawFile) -> ClassTable | None:
    """The table of classes that lies in the source, under whatever name: a few short lines."""
    if file.suffix not in class_table.ENDINGS or not 0 < file.size < 1 << 16:
        return None
    try:
        table = class_table.from_bytes(file.name, file.read(), file.path)
    except (UserError, BadFile):
        return None
    return table if (table.values or table.colours) and 2 <= len(table.names) <= 255 else None


def _entries(table: ClassTable) -> Iterator[str]:
    keys = [(key, own) for *key, own in table.values] if table.values else [(key, own) for key, own in table.colours]
    kind = "value" if table.values else "colour"
    for key, own in keys:
        yield f"{table.names[own] if own < len(table.names) else 'ignore'}={class_table.shown(kind, key)}"


def is_read(reader: Any, one: Content) -> bool:
    try:
        reader(one.data)
    except ValueError:
        return False
    return True


def shown(key: Key) -> str:
    return class_table.shown("colour", key) if len(key) == 3 else str(key[0])


def listed(keys: Sequence[Key]) -> str:
    return ", ".join(map(shown, keys[:12])) + (f", {len(keys) - 12} more" if len(keys) > 12 else "")


def option(classes: str) -> str:
    return f"--classes {shlex.quote(classes)}" if classes else ""
