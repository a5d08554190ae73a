"""The patterns of `data prepare pairs` for a folder of unknown layout, guessed from names and a look at a few files."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from rwkvctl.base.errors import UserError
from rwkvctl.data.convert import discover, field_of_view, mask_contents, name_words, part_folders, pattern_pairs
from rwkvctl.data.convert.discover import Problems, common_beginning, natural_key
from rwkvctl.data.convert.name_patterns import parse
from rwkvctl.data.convert.pattern_pairs import Matched
from rwkvctl.data.convert.sources import RawFile, Source
from rwkvctl.data.guess import layouts, looks, numbered_layouts
from rwkvctl.data.images.files import EXTENSIONS

_MOST_WORDS, _LOOKED_AT, _SHOWN = 8, 4, 3


@dataclass(frozen=True)
class Guess:
    """images, masks, split_from: what `data prepare pairs` is told; orphans: files without a partner; used: the paths
    of all others; mask_files: the masks among them; question: what is left open, in one line, or ""; words: what tells
    several masks of an image apart, where it is little; doubtful: whether the files look unlike images with masks;
    mixed: whether several masks of an image cannot be joined; richness: levels of an image, of which a colour
    photograph has more than a depth map."""

    images: str
    masks: str
    split_from: str | None
    samples: int
    orphans: int
    used: frozenset[str]
    mask_files: tuple[RawFile, ...]
    question: str = ""
    words: tuple[str, ...] = ()
    doubtful: bool = False
    mixed: bool = False
    richness: int = 0

    @property
    def rank(self) -> tuple[bool, int, int]:
        """What is the same in guesses that are as good."""
        return self.doubtful, self.orphans, self.samples

    @property
    def lesser(self) -> tuple[bool, bool]:
        """Whether names say that there may be better images, and better masks."""
        return name_words.says_lesser_image(self.images), name_words.says_lesser_mask(self.masks)

    @property
    def order(self) -> tuple[float, ...]:
        """The best first: the most pairs, then photographs rather than depth, class ids rather than colours or single
        objects, all masks of an image, and colour rather than grey."""
        images, masks = self.lesser
        pairs = self.orphans - self.samples
        return self.doubtful, pairs, images, self.mixed, masks, -len(self.used), -self.richness


def guess(source: Source) -> Guess | None:
    """The patterns that pair most images, and leave the fewest files without a partner; None when none pairs half."""
    files = [file for file in source.files if file.suffix in EXTENSIONS]
    found = [tried for images, masks in layouts.candidates(files) if (tried := _tried(source, images, masks))]
    found = [own if not own.orphans else _of_endings(source, own, files) for own in found]
    most = max((own.samples for own in found if not own.doubtful), default=0)
    numbered = [own for images, masks in layouts.by_numbers(files) if (own := _tried(source, images, masks))]
    found += [own for own in numbered if own.samples > most]
    found = [own for own in found if not field_of_view.found(own.mask_files)] or found
    if not found:
        return None
    found.sort(key=lambda own: own.order)
    best = found[0]
    others = [own for own in found[1:] if own.rank == best.rank and not own.used <= best.used]
    if name_words.says_mask(best.masks):
        others = [own for own in others if name_words.says_mask(own.masks) or own.lesser[1]]
    both = _joined(source, best, others)
    if both is not None:
        best, others = both, [own for own in others if not own.used <= both.used]
    return replace(best, question=_question(best, others))


def _joined(source: Source, best: Guess, others: Sequence[Guess]) -> Guess | None:
    """All masks of the images, where their kinds differ in a word and each shows one thing: `{left,right}Mask/*`."""
    alike = [own for own in others if own.images == best.images and own.lesser == best.lesser]
    kinds = [own.masks for own in (best, *alike)] if alike and not best.words else []
    masks = numbered_layouts.one_of(kinds) or _of_any_kind(kinds)
    made = _tried(source, best.images, masks) if masks else None
    return made if made and made.rank == best.rank and made.words and not made.mixed else None


def _of_any_kind(masks: Sequence[str]) -> str:
    """`{kind}/*_*` of `1. Exudates/*_EX` and `2. Optic disc/*_OD`; "" of what differs in another way."""
    columns = list(zip(*(own.split("/") for own in masks), strict=False))
    if not columns or len({own.count("/") for own in masks}) > 1:
        return ""
    *folders, names = columns
    front = re.sub(r"[^\W_]+$", "", common_beginning(names))
    back = re.sub(r"^[^\W_]+", "", common_beginning([name[len(front) :][::-1] for name in names])[::-1])
    written = ["{kind}" if len(set(own)) > 1 else own[0] for own in folders]
    return "/".join([*written, f"{front}*{back}"]) if written.count("{kind}") == 1 and len(set(names)) > 1 else ""


def _question(best: Guess, others: Sequence[Guess]) -> str:
    """What else the images and the masks could be; "" where nothing."""
    told = []
    others = [own for own in others if not name_words.says_drawn(f"{own.images} {own.masks}")]
    masks = [f"--masks {shlex.quote(own.masks)}" for own in others if own.images == best.images and not own.mixed]
    images = [f"--images {shlex.quote(own.images)}" for own in others if own.masks == best.masks]
    if images:
        told.append(
            f"images could also be {' or '.join(images[:_SHOWN])}; added as a second --images, it is further channels"
        )
    if masks:
        told.append(f"masks could also be {' or '.join(masks[:_SHOWN])}; which of them is meant is yours to say")
    others = [own for own in others if own.lesser == best.lesser]
    if others and not told:
        told.append(
            f"pairs could also be --images {shlex.quote(others[0].images)} --masks {shlex.quote(others[0].masks)}"
        )
    return "; ".join(told)


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


def _tried(source: Source, images: str, masks: str) -> Guess | None:
    problems = Problems(str(source))
    try:
        found = pattern_pairs.matched(source, parse("--images", images), parse("--masks", masks), problems)
    except UserError:
        return None
    if len(found.images) < max(2, looks.LEAST * len({text for text in problems.found if ": has no mask" in text})):
        return None
    paths = [discover.relative(own.file, found.root) for own in found.images.values()]
    split_from = "folders" if part_folders.are_parts(paths) else None
    image_files = [own.file for own in found.images.values()]
    mask_files = tuple(one.file for own in found.masks.values() for one in own)
    words = _words(found)
    mixed = _is_mixed(found, words)
    return Guess(
        images,
        masks,
        split_from,
        samples=len(found.images),
        orphans=len(set(problems.found)),
        used=frozenset(file.path for file in (*image_files, *mask_files)),
        mask_files=mask_files,
        words=words,
        doubtful=not mixed and not looks.may_be_masks(mask_files, image_files),
        mixed=mixed,
        richness=mask_contents.levels(image_files[0]),
    )


def _is_mixed(found: Matched, words: Sequence[str]) -> bool:
    """Whether masks that few words tell apart hold several classes each, so that they are no parts of one mask."""
    several = next((own for own in found.masks.values() if len(own) > 1), ())
    return bool(words) and any(mask_contents.holds_classes(one.file) for one in several)


def _words(found: Matched) -> tuple[str, ...]:
    """What tells several masks of an image apart, where few names do: those of larger objects first, if they cover
    those of others, since of classes that overlap the later one is taken."""
    several = [own for own in found.masks.values() if len(own) > 1]
    told = {tuple(one.values.values()) for own in found.masks.values() for one in own}
    names = {values[-1] for values in told if values}
    if not several or not all(names) or len(names) != len(told) or len(names) > _MOST_WORDS:
        return ()
    areas = dict.fromkeys(sorted(names, key=natural_key), 0)
    overlap = False
    for own in several[:_LOOKED_AT]:
        drawn = {list(one.values.values())[-1]: mask_contents.area(one.file) for one in own}
        shapes = {name: shape for name, shape in drawn.items() if shape is not None}
        for name, shape in shapes.items():
            areas[name] += int(shape.sum())
        if len({shape.shape for shape in shapes.values()}) == 1:
            overlap |= bool((np.sum(list(shapes.values()), axis=0) > 1).any())
    return tuple(sorted(areas, key=lambda name: -areas[name]) if overlap else areas)
