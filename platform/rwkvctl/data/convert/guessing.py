"""The patterns of `data prepare pairs` for a folder of unknown layout, guessed from names alone."""

from __future__ import annotations

import itertools
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from rwkvctl.base.errors import UserError
from rwkvctl.data.convert import discover, part_folders, pattern_pairs
from rwkvctl.data.convert.discover import Problems, natural_key
from rwkvctl.data.convert.name_patterns import parse
from rwkvctl.data.convert.pattern_pairs import Matched
from rwkvctl.data.convert.sources import RawFile, Source
from rwkvctl.data.images.files import EXTENSIONS

_MASK = re.compile(
    r"mask|label|lbl|(?<![a-z])gt(?![a-z])|ground.?truth|annot|segm|(?<![a-z])seg(?![a-z])|manual|target|maske|beschrift"
    r"|masque|m[aá]scara|maschera|маск|разметк|マスク|标签|掩",
    re.IGNORECASE,
)
"""In what folders of masks, or what stands behind the names of masks, are called."""
LEAST = 0.5
"""A guess that pairs a smaller share of the images is none."""
_MOST_TRIES, _MOST_FOLDERS, _MOST_WORDS = 8, 40, 8


@dataclass(frozen=True)
class Guess:
    """images, masks, split_from: what `data prepare pairs` is told; question: what they leave open, in one line, or
    ""; words: what tells several masks of an image apart, where it is little."""

    images: str
    masks: str
    split_from: str | None
    samples: int
    examples: list[str]
    problems: list[str]
    question: str = ""
    words: tuple[str, ...] = ()


def guess(source: Source) -> Guess | None:
    """The patterns that pair most images, those without a problem first; None when none pairs half of them."""
    files = [file for file in source.files if file.suffix in EXTENSIONS]
    found = [tried for images, masks in _candidates(files) if (tried := _tried(source, images, masks))]
    if not found:
        return None
    found.sort(key=lambda own: (len(own[1].problems), -own[1].samples))
    best = found[0][1]
    others = [other for other, own in found[1:] if _rank(own) == _rank(best) and own.examples != best.examples]
    if not others:
        return best
    told = f"masks could also be --masks {shlex.quote(others[0])}; which of them is meant is yours to say"
    return replace(best, question=best.question or told)


def _rank(own: Guess) -> tuple[int, int]:
    return len(own.problems), own.samples


def _tried(source: Source, images: str, masks: str) -> tuple[str, Guess] | None:
    problems = Problems(str(source))
    try:
        found = pattern_pairs.matched(source, parse("--images", images), parse("--masks", masks), problems)
    except UserError:
        return None
    if len(found.images) < max(2, LEAST * len({text for text in problems.found if ": has no mask" in text})):
        return None
    split_from = None
    paths = {str(n): discover.relative(own.file, found.root) for n, own in enumerate(found.images.values())}
    try:
        part_folders.by_folder(paths)
        split_from = "folders"
    except UserError:
        pass  # most sources have no such folders
    pairs = [(found.images[name], own) for name, own in list(found.masks.items())[:3]]
    examples = [f"{image.file.path}  with  {', '.join(one.file.path for one in own[:3])}" for image, own in pairs]
    known = discover.by_kind(problems.found)
    return masks, Guess(images, masks, split_from, len(found.images), examples, known, words=_words(found))


def _words(found: Matched) -> tuple[str, ...]:
    """What tells several masks of an image apart, where few names do."""
    if not any(len(own) > 1 for own in found.masks.values()):
        return ()
    names = {value for own in found.masks.values() for one in own for value in one.values.values()}
    return tuple(sorted(names, key=natural_key)) if len(names) <= _MOST_WORDS else ()


def _candidates(files: Sequence[RawFile]) -> Iterator[tuple[str, str]]:
    """Patterns for images and masks, the likelier first."""
    folders: dict[str, list[RawFile]] = {}
    for file in files:
        folders.setdefault(file.parent, []).append(file)
    made = dict.fromkeys([*_of_folders(folders), *_of_suffixes(folders)])
    yield from list(made)[:_MOST_TRIES]


def _of_folders(folders: dict[str, list[RawFile]]) -> Iterator[tuple[str, str]]:
    """A folder of masks beside one of images, at one place or at many: `*/Fotos/*` and `*/Masken/*`. Without a name
    that says masks, they are in the folder of far smaller files."""
    named = any(_MASK.search(folder) for folder in folders)
    for mask, image in itertools.permutations(list(folders)[:_MOST_FOLDERS], 2):
        parts, own = mask.split("/"), image.split("/")
        differ = (n for n, pair in enumerate(zip(parts, own, strict=False)) if pair[0] != pair[1])
        depth = next(differ, None)
        if depth is None:
            continue
        if named and (not _MASK.search(parts[depth]) or _MASK.search(own[depth])):
            continue
        if not named and not _look_like_masks(folders[mask], folders[image]):
            continue
        front = "/".join(parts[:depth])
        alone = not front or all(path == front or path.startswith(f"{front}/") for path in folders)
        below = "**/" if len(own) > depth + 1 else ""
        names = _names([file.stem for file in folders[image]], [file.stem for file in folders[mask]])
        top = f"{front}/".lstrip("/") if alone else "*/" * depth
        yield f"{top}{own[depth]}/{below}{names[0]}", f"{top}{parts[depth]}/{below}{names[1]}"
        if not alone:
            top = "*/" * (depth - 1) + "{id}/"
            yield f"{top}{own[depth]}/*", f"{top}{parts[depth]}/{{n}}"


def _look_like_masks(masks: Sequence[RawFile], images: Sequence[RawFile]) -> bool:
    """Less than half as large, and no JPEG: photographs of two classes are no pairs."""
    sizes = [sum(file.size for file in files) / len(files) for files in (masks, images)]
    return sizes[0] < sizes[1] / 2 and not any(file.suffix in (".jpg", ".jpeg") for file in masks)


def _names(images: Sequence[str], masks: Sequence[str]) -> tuple[str, str]:
    """`*` and `*_mask`, or what else stands before and behind what the names of both sides share."""
    (front, back), (own_front, own_back) = _common(images), _common(masks)
    ids = {name[len(front) : len(name) - len(back) or None] for name in images}
    bare = [name[len(own_front) : len(name) - len(own_back) or None] for name in masks]
    if not ids & set(bare) and any(name[: cut.start()] in ids for name in bare for cut in re.finditer("[_-]", name)):
        sign = next(cut[0] for name in bare for cut in re.finditer("[_-]", name) if name[: cut.start()] in ids)
        return f"{front}*{back}", f"{own_front}*{sign}*{own_back}"
    return f"{front}*{back}", f"{own_front}*{own_back}"


def _common(names: Sequence[str]) -> tuple[str, str]:
    """What all names begin and end with, up to a sign that parts words."""
    if len(names) < 2:
        return "", ""
    front = re.sub(r"[^\W_]+$", "", _beginning(names))
    back = _beginning([name[len(front) :][::-1] for name in names])[::-1]
    cut = re.search(r"[\W_]", back)
    return front, back[cut.start() :] if cut else ""


def _beginning(names: Sequence[str]) -> str:
    same = itertools.takewhile(lambda signs: len(set(signs)) == 1, zip(*names, strict=False))
    return "".join(signs[0] for signs in same)


def _of_suffixes(folders: dict[str, list[RawFile]]) -> Iterator[tuple[str, str]]:
    """Masks in the folder of their images: `*` and `*_mask`."""
    endings: Counter[str] = Counter()
    images = 0
    for files in folders.values():
        names = [file.stem for file in files]
        known = set(names)
        heads = {(name[: cut.start()], name[cut.start() :]) for name in names for cut in re.finditer(r"[_\-. ]", name)}
        own = [(head, tail) for head, tail in heads if head in known]
        images += len({head for head, _ in own})
        endings.update(tail for _, tail in own)
    everywhere = [tail for tail, n in endings.items() if n >= LEAST * images]
    top = "**/" if len(folders) > 1 else ""
    if len(everywhere) == 1:
        yield f"{top}*", f"{top}*{everywhere[0]}"
    elif everywhere and len({tail[0] for tail in everywhere}) == 1:
        words = ",".join(sorted((tail[1:] for tail in everywhere), key=natural_key))
        yield f"{top}*", f"{top}*{everywhere[0][0]}{{{words}}}"
