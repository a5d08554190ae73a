"""Which images and masks belong together by two patterns of names: what their wildcards match must agree."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from rwkvctl.base.errors import UserError
from rwkvctl.data.convert import discover
from rwkvctl.data.convert.discover import Problems, normal_id
from rwkvctl.data.convert.name_patterns import NamePattern
from rwkvctl.data.convert.sources import RawFile, Source
from rwkvctl.data.convert.voxel_files import is_volume
from rwkvctl.data.images.files import EXTENSIONS

Id = tuple[str, ...]


class Match(NamedTuple):
    """A file, and what the wildcards of its pattern may be in its path."""

    file: RawFile
    ways: list[tuple[str, ...]]


class Found(NamedTuple):
    """A file, and what the wildcards that pair nothing are in its path: by name, or `*N` by place."""

    file: RawFile
    values: dict[str, str]


@dataclass
class Matched:
    """root: the folder that the patterns count from; images and masks by the images' ids, both of the same ids."""

    root: str
    images: dict[Id, Found]
    masks: dict[Id, list[Found]]


def matched(
    source: Source, image: NamePattern, mask: NamePattern, problems: Problems, volumes: bool = False
) -> Matched:
    """The pairs of a source, of images or of volumes. The patterns count from its top, or from a folder in it that
    holds everything.

    UserError when one of them matches nothing; files without a partner are problems.
    """
    files = [file for file in source.files if (is_volume(file) if volumes else file.suffix in EXTENSIONS)]
    tries = []
    for root in _roots({file.parent for file in files}):
        found = [_matches(files, root, pattern) for pattern in (image, mask)]
        if all(found):
            images, masks = _apart(found[0], found[1], image, mask)
            return _paired(root, images, masks, image, mask, problems)
        tries.append(found)
    pattern = mask if any(found[0] for found in tries) else image
    shown = ", ".join(file.path for file in files[:: max(1, len(files) // 3)][:3])
    raise UserError(
        f"{pattern.option} {pattern.text!r}: matches none of the {len(files)} images in {source}, from where it counts"
        f"{f'; there is {shown}' if shown else ''}; give it in quotes"
    )


def _roots(folders: set[str]) -> list[str]:
    """The top, and below it the folders that hold everything."""
    roots = [""]
    for level in itertools.zip_longest(*(folder.split("/") for folder in folders)):
        if len(set(level)) > 1 or not level[0]:
            break
        roots.append(f"{roots[-1]}/{level[0]}".lstrip("/"))
    return roots


def _matches(files: Sequence[RawFile], root: str, pattern: NamePattern) -> list[Match]:
    found = (Match(file, pattern.ways(discover.relative(file, root))) for file in files)
    return [match for match in found if match.ways]


def _apart(
    images: list[Match], masks: list[Match], image: NamePattern, mask: NamePattern
) -> tuple[list[Match], list[Match]]:
    """What both patterns match (`*.png` and `*_mask.png`) is of the one that says more."""
    both = {match.file.path for match in images} & {match.file.path for match in masks}
    if both and image.plain == mask.plain:
        raise UserError(f"--images {image.text!r} and --masks {mask.text!r}: both match {min(both)}; tell them apart")
    if image.plain > mask.plain:
        return images, [match for match in masks if match.file.path not in both]
    return [match for match in images if match.file.path not in both], masks


def _paired(
    root: str, images: list[Match], masks: list[Match], image: NamePattern, mask: NamePattern, problems: Problems
) -> Matched:
    """Wildcards of one name in both patterns must agree, and those without a name in their order.

    Of more in `--masks`, those are taken that give the most pairs: of `masks/*/*.png` the folder or the name.
    """
    shared = [name for name in image.names if name and name in mask.names]
    stars = [n for n, name in enumerate(mask.names) if not name]
    count = image.names.count("") if stars or not shared else 0
    places = [n for n, name in enumerate(image.names) if name in shared or (count and not name)]
    if count > len(stars) or not places:
        raise UserError(
            f"--images {image.text!r} has {count} wildcards without a name, --masks {mask.text!r} has {len(stars)}; "
            "what must agree needs one in both, * or {id}; what need not, a name in one of them"
        )
    found: dict[Id, Found] = {}
    for match in images:
        name = _id(match.ways[0], places)
        if not any(name):
            problems.add(f"{match.file}: --images leaves nothing of its name; rename it")
        elif name in found:
            problems.add(f"{match.file}: has the same id as {found[name].file} by --images; keep one, or rename one")
        else:
            unnamed = [n for n in places if not image.names[n]]
            found[name] = Found(match.file, _values(image, match.ways[0], unnamed))
    tries = []
    for chosen in itertools.combinations(stars, count):
        own = iter(chosen)
        order = [mask.names.index(image.names[n]) if image.names[n] else next(own) for n in places]
        tries.append(_assigned(masks, order, found, mask))
    of_image, orphans = min(tries, key=lambda one: len(one[1]))
    every = {"/".join(name): one.file for name, one in found.items()}
    firsts = {"/".join(name): own[0].file for name, own in of_image.items()}
    rule = f"--masks {mask.text} must have what --images {image.text} has for its wildcards"
    discover.pair(every, firsts | {f"//{file.path}": file for file in orphans}, problems, rule)
    return Matched(root, {name: own for name, own in found.items() if name in of_image}, of_image)


def _assigned(
    masks: list[Match], order: Sequence[int], images: Mapping[Id, Found], mask: NamePattern
) -> tuple[dict[Id, list[Found]], list[RawFile]]:
    """Masks by image, and those of none. `1_2_3.png` by `*_*.png` is of image `1_2`, if there is one, else of `1`."""
    found: dict[Id, list[Found]] = {}
    orphans = []
    for file, ways in masks:
        way = next((way for way in ways if _id(way, order) in images), None)
        if way is None:
            orphans.append(file)
        else:
            found.setdefault(_id(way, order), []).append(Found(file, _values(mask, way, order)))
    return found, orphans


def _id(values: Sequence[str], places: Sequence[int]) -> Id:
    """What names must have in common, as `discover.normal_id` says."""
    return tuple("/".join(map(normal_id, values[n].split("/"))) if values[n] else "" for n in places)


def _values(pattern: NamePattern, way: Sequence[str], without: Sequence[int]) -> dict[str, str]:
    return {pattern.names[n] or f"*{n}": value for n, value in enumerate(way) if n not in without}
