"""What the masks of one's own images hold, by a few of them: two classes, class ids, grey values, colours, objects."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from rwkvctl.base.errors import BadFile
from rwkvctl.data.convert.formats.folder import ClassIds
from rwkvctl.data.convert.formats.pairs import SAME_ASPECT, Pair
from rwkvctl.data.convert.mask_contents import Content, content_of, keys_of
from rwkvctl.data.convert.sources import RawFile, Source
from rwkvctl.data.guess import mask_classes
from rwkvctl.data.guess.mask_classes import MOST_EDGE, MOST_OPENED, edges, is_read, listed
from rwkvctl.data.images import masks
from rwkvctl.data.images.files import deep_values

MOST_FOR_VALUES = 400
"""Of masks with several classes so many are looked through for a rare one."""
MOST_BYTES, MOST_PIXELS = 64 << 20, 256 << 20
"""Of files, and of what they hold; large masks take up little room as files."""
_POINTER_BYTES = 400
_MOST_HEADS = 5000
_WITHIN, _SMALLER, _MOSTLY = 0.98, 0.9, 0.8
"""A mask lies within another if so much of it does and it is so much smaller; in so many images, they are classes."""
_ROTATED = (5, 6, 7, 8)
"""EXIF orientations that swap width and height."""


@dataclass
class Survey:
    """found: what the masks hold, in words; classes: what `--classes` must say, "" where nothing; question: what they
    leave open; problems: what `prepare` would refuse; warnings: what a person should look at; overlap: how much of
    their area masks of one image share, 0 where one kind lies within the other, None with one mask an image."""

    found: str = ""
    classes: str = ""
    question: str = ""
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    overlap: float | None = None
    resized: list[str] = field(default_factory=list)


def survey(source: Source, pairs: Sequence[Pair]) -> Survey:
    """Look at some of `pairs`."""
    own = Survey()
    faulty = _refuse_no_images(pairs, own)
    sound = [pair for pair in pairs if pair.key not in faulty]
    opened: list[list[Content]] = []
    for pair in _spread(sound, MOST_OPENED):
        if sum(one.pixels.nbytes for found in opened for one in found) < MOST_PIXELS:
            opened.append(list(_opened(pair, own)))
    contents = [one for masks_of_one in opened for one in masks_of_one]
    if not contents:
        return own
    own.overlap = _overlap([(found[0], found[1]) for found in opened if len(found) > 1])
    _note_outlines(contents, own)
    if own.resized:
        names = ", ".join(own.resized[:3])
        own.warnings.append(f"{len(own.resized)} of {len(contents)} masks are resized to their images: {names}")
    several = f"{len(contents)} of {sum(len(pair.masks) for pair in pairs)} opened"
    if max(keys_of(contents))[0] == 1:  # ids, of which others may be rare
        contents += _others(sound, contents)
    if all(is_read(ClassIds(2), one) for one in contents):
        several = f"{len(contents)} of {sum(len(pair.masks) for pair in pairs)} opened"
        own.question = _inverted(contents)
        own.found = f"two classes ({listed(keys_of(contents)[:2])}{', JPEG' if contents[0].lossy else ''}), {several}"
        return own
    contents += _others(sound, contents)
    several = f"{len(contents)} of {sum(len(pair.masks) for pair in pairs)} opened"
    meaning = mask_classes.meaning(source, contents, several)
    own.found, own.classes, own.question = meaning.found, meaning.classes, meaning.question
    own.problems += filter(None, [meaning.problem])
    return own


def _refuse_no_images(pairs: Sequence[Pair], own: Survey) -> set[str]:
    """Keys of pairs of which a file is empty or a pointer of Git LFS, as its size and first bytes tell."""
    faulty = set()
    small = [(pair, file) for pair in pairs for file in pair.files if file.size <= _POINTER_BYTES]
    near = not any(file.kind == "object" for _, file in small)  # else each is a request
    for pair, file in small[:_MOST_HEADS] if near else _spread(small, MOST_OPENED):
        try:
            if not file.read():
                raise BadFile(f"{file}: empty file; replace it")
        except BadFile as error:
            own.problems.append(str(error))
            faulty.add(pair.key)
    return faulty


def _spread(items: Sequence[Any], most: int) -> list[Any]:
    return [items[n] for n in np.linspace(0, len(items) - 1, min(most, len(items))).round().astype(int)]


def _opened(pair: Pair, own: Survey) -> Iterator[Content]:
    """The masks of a pair that can be read and have the size of their image; problems go into `own`."""
    try:
        size = _size(pair.image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        own.problems.append(f"{pair.image}: cannot be read as an image ({error}); replace it")
        return
    for file in pair.masks[:4]:
        if file.size > MOST_BYTES // 4:
            continue
        try:
            content = content_of(file)
        except (BadFile, ValueError) as error:
            own.problems.append(str(error) if isinstance(error, BadFile) else f"{file}: {error}")
            continue
        height, width = content.pixels.shape[:2]
        if abs(width / height - size[0] / size[1]) > SAME_ASPECT * size[0] / size[1]:
            shown = f"is {width} x {height}, its image {pair.image.name} is {size[0]} x {size[1]}"
            own.problems.append(f"{file}: {shown}; give them one size")
        elif (width, height) != size:
            own.resized.append(f"{file.path} ({width} x {height}, its image {size[0]} x {size[1]})")
        yield content


def _size(file: RawFile) -> tuple[int, int]:
    """Width and height as an image is shown, from its header."""
    try:
        with file.open() as stream, Image.open(stream) as image:
            turned = image.getexif().get(0x0112, 1) in _ROTATED
            return (image.height, image.width) if turned else image.size
    except UnidentifiedImageError:
        values = deep_values(file.read())  # floats in colour, which Pillow does not know
        if values is None:
            raise
        return values.shape[1], values.shape[0]


def _more(pairs: Sequence[Pair], read: int, held: int) -> Iterator[Content]:
    """Further masks, of which only the counts are kept; read and held: bytes so far of files and of their pixels."""
    for pair in pairs:
        for file in pair.masks[:1]:
            read += file.size
            if read > MOST_BYTES or held > MOST_PIXELS:
                return
            try:
                content = content_of(file)
            except (BadFile, ValueError):
                continue  # said when it is converted
            held += content.pixels.nbytes
            yield replace(content, pixels=content.pixels[:0])


def _others(pairs: Sequence[Pair], contents: Sequence[Content]) -> list[Content]:
    known = {one.file.path for one in contents}
    others = [pair for pair in _spread(pairs, MOST_FOR_VALUES) if pair.masks and pair.masks[0].path not in known]
    return list(_more(others, sum(len(one.data) for one in contents), sum(one.pixels.nbytes for one in contents)))


def _note_outlines(contents: Sequence[Content], own: Survey) -> None:
    found = []
    for one in contents:
        black = (0,) * (3 if one.is_colour else 1)
        background = black if black in one.counts or not one.counts else one.counts.most_common(1)[0][0]
        ids = np.any(np.atleast_3d(one.pixels) != np.array(background, one.pixels.dtype), axis=-1)
        if masks.oddity(ids.astype(np.uint8)) == masks.OUTLINE:
            found.append(one.file)
    if len(found) > len(contents) / 2:
        own.problems += [
            f"{file}: {masks.OUTLINE}; fill the outlines, or give the masks that show areas" for file in found
        ]
    elif found:
        names = ", ".join(file.path for file in found[:3])
        own.warnings.append(f"{len(found)} of {len(contents)} masks show a thin outline, not an area: {names}")


def _inverted(contents: Sequence[Content]) -> str:
    """A question where what would be the foreground lies all around the edges of most masks."""
    around = 0
    contents = [one for one in contents if one.pixels.size]
    for one in contents:
        bright = np.atleast_3d(one.pixels)[..., 0] > 0
        around += bool(edges(bright).mean() > MOST_EDGE and bright.mean() > 1 / 2)
    if around <= len(contents) / 2:
        return ""
    return "white is around the edges of most masks; is it the background, add --classes background=255,foreground=0"


def _overlap(pairs: Sequence[tuple[Content, Content]]) -> float | None:
    """The part of the union of two masks that both have, on average; 0 where those of one kind lie within those of the
    other nearly everywhere, as a cup within its disc does."""
    shares: list[float] = []
    within = [0, 0]
    for pair in pairs:
        first, second = (np.any(np.atleast_3d(one.pixels) > 0, axis=-1) for one in pair)
        if first.shape != second.shape or not (first.any() and second.any()):
            continue
        both, areas = int((first & second).sum()), (int(first.sum()), int(second.sum()))
        shares.append(both / (sum(areas) - both))
        for n in (0, 1):
            within[n] += both > _WITHIN * areas[n] and areas[n] < _SMALLER * areas[1 - n]
    if not shares:
        return 0.0 if pairs else None
    return 0.0 if max(within) > _MOSTLY * len(shares) else sum(shares) / len(shares)
