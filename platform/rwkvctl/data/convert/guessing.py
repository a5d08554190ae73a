"""The patterns of `data prepare pairs` for a folder of unknown layout, guessed from names alone."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rwkvctl.base.errors import UserError
from rwkvctl.data.convert import discover, field_of_view, layouts, part_folders, pattern_pairs
from rwkvctl.data.convert.discover import Problems, natural_key
from rwkvctl.data.convert.name_patterns import parse
from rwkvctl.data.convert.pattern_pairs import Matched
from rwkvctl.data.convert.sources import RawFile, Source
from rwkvctl.data.images.files import EXTENSIONS

_MOST_WORDS = 8


@dataclass(frozen=True)
class Guess:
    """images, masks, split_from: what `data prepare pairs` is told; orphans: files without a partner; used: the paths
    of all others; mask_files: the masks among them; question: what is left open, in one line, or ""; words: what tells
    several masks of an image apart, where it is little."""

    images: str
    masks: str
    split_from: str | None
    samples: int
    orphans: int
    used: frozenset[str]
    mask_files: tuple[RawFile, ...]
    question: str = ""
    words: tuple[str, ...] = ()


def guess(source: Source) -> Guess | None:
    """The patterns that pair most images, and leave the fewest files without a partner; None when none pairs half."""
    files = [file for file in source.files if file.suffix in EXTENSIONS]
    found = [tried for images, masks in layouts.candidates(files) if (tried := _tried(source, images, masks))]
    found = [own if not own.orphans else _of_endings(source, own, files) for own in found]
    most = max((own.samples for own in found), default=0)
    numbered = [own for images, masks in layouts.by_numbers(files) if (own := _tried(source, images, masks))]
    found += [own for own in numbered if own.samples > most]
    if not found:
        return None
    found.sort(key=lambda own: (own.orphans - own.samples, -len(own.used)))
    found = [own for own in found if not field_of_view.found(own.mask_files)] or found
    best = found[0]
    others = [own for own in found[1:] if _rank(own) == _rank(best) and not own.used <= best.used]
    if layouts.says_mask(best.masks):
        others = [own for own in others if layouts.says_mask(own.masks)]
    if not others:
        return best
    images = others[0].images != best.images and others[0].masks == best.masks
    told = f"--images {shlex.quote(others[0].images)}" if images else f"--masks {shlex.quote(others[0].masks)}"
    what = "images" if images else "masks"
    return replace(best, question=f"{what} could also be {told}; which of them is meant is yours to say")


def _of_endings(source: Source, own: Guess, files: Sequence[RawFile]) -> Guess:
    """The same with images of those endings alone that images with a mask have, if that leaves fewer files over: beside
    photographs may lie previews as PNG."""
    masks = {file.path for file in own.mask_files}
    endings = sorted({file.name.rpartition(".")[2] for file in files if file.path in own.used - masks})
    if len(endings) > 2 or (own.images.endswith("}") and "." in own.images.rpartition("/")[2]):
        return own
    shown = endings[0] if len(endings) == 1 else "{" + ",".join(endings) + "}"
    other = _tried(source, f"{own.images}.{shown}", own.masks)
    return other if other and other.samples >= own.samples and other.orphans < own.orphans else own


def _rank(own: Guess) -> tuple[int, int]:
    return own.orphans, own.samples


def _tried(source: Source, images: str, masks: str) -> Guess | None:
    problems = Problems(str(source))
    try:
        found = pattern_pairs.matched(source, parse("--images", images), parse("--masks", masks), problems)
    except UserError:
        return None
    if len(found.images) < max(2, layouts.LEAST * len({text for text in problems.found if ": has no mask" in text})):
        return None
    paths = [discover.relative(own.file, found.root) for own in found.images.values()]
    split_from = "folders" if part_folders.are_parts(paths) else None
    mask_files = tuple(one.file for own in found.masks.values() for one in own)
    used = [own.file.path for own in found.images.values()] + [file.path for file in mask_files]
    orphans = len(set(problems.found))
    return Guess(
        images, masks, split_from, len(found.images), orphans, frozenset(used), mask_files, words=_words(found)
    )


def _words(found: Matched) -> tuple[str, ...]:
    """What tells several masks of an image apart, where few names do."""
    if not any(len(own) > 1 for own in found.masks.values()):
        return ()
    names = {value for own in found.masks.values() for one in own for value in one.values.values()}
    return tuple(sorted(names, key=natural_key)) if all(names) and len(names) <= _MOST_WORDS else ()
