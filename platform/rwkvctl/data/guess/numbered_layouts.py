"""Patterns for images and masks whose names are words with numbers, as `training/images/21_training` and
`training/1st_manual/21_manual1`.

Files whose paths have the same words are of one kind. The numbers that differ within a kind tell its files apart; those
that do not (`1st`, `manual1`) are words too. A kind of images and one of masks belong together if their numbers agree.
"""

from __future__ import annotations

import itertools
import re
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from rwkvctl.data.convert.discover import common_beginning, natural_key, normal_id
from rwkvctl.data.convert.sources import RawFile

_NUMBER = re.compile(r"\d+")
_NAME = re.compile(r"\{\w+\}")
_WORD = re.compile(r"[^{}*?\[\],/]*")
"""What can stand between the braces of a pattern."""
_MOST_KINDS, _MOST_NUMBERS = 60, 6
"""More come from names that numbers do not tell apart, such as hashes."""
_MOST_GLUED = 4
_FURTHER = "nopqrs"
"""Names of numbers that masks alone have."""

Numbers = tuple[str, ...]
Patterns = tuple[str, str]


@dataclass(frozen=True, eq=False)
class Kind:
    """Files whose paths differ in numbers alone. parts: the folders and the name, `{a}`, `{b}`, ... for the numbers."""

    parts: tuple[str, ...]
    files: Mapping[Numbers, RawFile]

    @cached_property
    def words(self) -> str:
        return "/".join(_NAME.sub("", part) for part in self.parts)

    @property
    def some(self) -> list[RawFile]:
        return list(self.files.values())


@dataclass(frozen=True)
class Pairing:
    """A kind of masks beside one of images, with the images' names for the numbers."""

    images: Kind
    masks: Kind

    @cached_property
    def nearness(self) -> int:
        """How many folders and names they share: those of training are nearer to their masks than to those of test."""
        return len(set(self.images.parts) & set(self.masks.parts))

    @cached_property
    def what(self) -> tuple[str, ...]:
        """What the masks are, whichever their images: their words without those of the images."""
        own = sorted((part for part in self.images.parts if _NAME.sub("", part)), key=len, reverse=True)
        found = []
        for part in self.masks.parts:
            same = next((word for word in own if word in part), "")
            found.append(_NAME.sub("", part.replace(same, "", 1)))
        return tuple(found)


def patterns(
    images: Sequence[Kind], masks: Sequence[Kind], holds_classes: Callable[[RawFile], bool]
) -> Iterator[Patterns]:
    """For `--images` and `--masks`, what pairs most images first. Masks that hold no classes may be several of one
    image."""
    by_what: dict[tuple[str, ...], list[Pairing]] = {}
    for kind in images:
        found = list(_pairings(kind, masks))
        nearest = max((pairing.nearness for pairing in found), default=0)
        for pairing in found:
            if pairing.nearness == nearest:
                by_what.setdefault(pairing.what, []).append(pairing)
    often = sorted(by_what.values(), key=lambda own: -sum(len(pairing.images.files) for pairing in own))
    alike = [own for own in often if [each.images for each in own] == [each.images for each in often[0]]]
    if len(alike) > 1 and not any(holds_classes(own[0].masks.some[0]) for own in alike):
        yield from filter(None, [_several(alike)])
    yield from filter(None, map(_patterns, often))


def kinds(files: Sequence[RawFile], stem: Callable[[RawFile], str] = lambda file: file.stem) -> list[Kind]:
    """The kinds of two files and more; none where most files are of kinds of their own. stem: a name without its
    ending."""
    of_words: dict[str, dict[Numbers, RawFile]] = {}
    for file in files:
        path = f"{file.parent}/{stem(file)}".lstrip("/")
        if any(sign in path for sign in "{}*?[]#"):
            return []
        of_words.setdefault(_NUMBER.sub("#", path), {})[tuple(_NUMBER.findall(path))] = file
    split = [kind for words, own in of_words.items() for kind in _by_glued_numbers(words, own)]
    found = [_kind(words, own) for words, own in split if len(own) > 1]
    if len(found) > _MOST_KINDS:
        return []
    return [kind for kind in found if len(next(iter(kind.files))) <= _MOST_NUMBERS]


def _by_glued_numbers(words: str, files: Mapping[Numbers, RawFile]) -> list[tuple[str, Mapping[Numbers, RawFile]]]:
    """Files whose words differ in a digit behind letters, as `t1` and `t2` do, each for itself: few such words, all of
    which there are with all the other numbers."""
    columns = list(zip(*files, strict=True))
    before = words.split("#")
    for place, column in enumerate(columns):
        values = sorted(set(column))
        others = {numbers[:place] + numbers[place + 1 :] for numbers in files}
        whole = len(files) == len(values) * len(others)
        few = 1 < len(values) <= _MOST_GLUED and all(len(value) == 1 for value in values)
        if before[place][-1:].isalpha() and few and len(others) > 1 and whole:
            own = [{key: file for key, file in files.items() if key[place] == value} for value in values]
            return [kind for each in own for kind in _by_glued_numbers(words, each)]
    return [(words, files)]


def _kind(words: str, files: Mapping[Numbers, RawFile]) -> Kind:
    """Numbers that are the same in all files become words; places with equal numbers get one name."""
    columns = list(zip(*files, strict=True))
    name_of: dict[Numbers, str] = {}
    shown = []
    for column in columns:
        name = f"{{{string.ascii_lowercase[len(name_of)]}}}"
        shown.append(column[0] if len(set(column)) == 1 else name_of.setdefault(column, name))
    words_of = iter(shown)
    path = re.sub("#", lambda _: next(words_of), words)
    places = [columns.index(column) for column in name_of]
    ids = {tuple(normal_id(numbers[place]) for place in places): file for numbers, file in files.items()}
    return Kind(tuple(path.split("/")), ids)


def _pairings(images: Kind, masks: Sequence[Kind]) -> Iterator[Pairing]:
    """The kinds of masks that at least half of the images have, however their numbers are ordered."""
    count = len(next(iter(images.files)))
    for kind in masks:
        best, order = 0, tuple[int, ...]()
        for chosen in itertools.permutations(range(len(next(iter(kind.files)))), count):
            shared = {tuple(numbers[place] for place in chosen) for numbers in kind.files} & images.files.keys()
            if len(shared) > best:
                best, order = len(shared), chosen
        if 2 * best >= len(images.files):
            yield Pairing(images, _renamed(kind, order))


def _renamed(kind: Kind, order: Sequence[int]) -> Kind:
    """A kind of masks whose numbers in the places `order` are called as those of the images, in their order."""
    letters, further = string.ascii_lowercase, iter(_FURTHER)
    name_of = {letters[place]: letters[number] for number, place in enumerate(order)}
    for letter in letters[:_MOST_NUMBERS]:
        if letter not in name_of:
            name_of[letter] = next(further)
    parts = tuple(_NAME.sub(lambda place: f"{{{name_of[place[0][1:-1]]}}}", part) for part in kind.parts)
    return Kind(parts, kind.files)


# From pairings of the same masks to patterns -------------------------------------------------------------------------


def _patterns(pairings: Sequence[Pairing]) -> Patterns | None:
    """One pattern for all images and one for their masks; None where their folders are too different for that."""
    images, masks = _columns([own.images for own in pairings]), _columns([own.masks for own in pairings])
    if images is None or masks is None:
        return None
    of_images, of_masks = [one_of(column) for column in images], [one_of(column) for column in masks]
    for number, column in enumerate(images):
        follow = {place: around for place, own in enumerate(masks) if (around := _around(column, own))}
        if len(set(column)) > 1 and follow:
            name = "{id}" if any(map(_NAME.search, column)) else f"{{part{number + 1}}}"
            of_images[number] = name
            for place, (before, behind) in follow.items():
                of_masks[place] = f"{before}{name}{behind}"
    return starred("/".join(of_images), "/".join(of_masks)) if all(of_images) and all(of_masks) else None


def _several(alike: Sequence[Sequence[Pairing]]) -> Patterns | None:
    """As `_patterns` for masks of several kinds for the same images, which differ in one word: `{left,right}Mask`."""
    each = [made for own in alike if (made := _patterns(own))]
    masks = one_of([mask for _, mask in each])
    return (each[0][0], masks) if len(each) == len(alike) and len({own for own, _ in each}) == 1 and masks else None


def _columns(found: Sequence[Kind]) -> list[tuple[str, ...]] | None:
    """The folders of all kinds by their depth, then the names; None where they lie at several depths."""
    depths = {len(kind.parts) for kind in found}
    return list(zip(*(kind.parts for kind in found), strict=True)) if len(depths) == 1 else None


def _around(images: Sequence[str], masks: Sequence[str]) -> tuple[str, str] | None:
    """What stands before and behind the images' words in those of the masks (`train`, `trainannot`), in all alike."""
    if not all(own in other for own, other in zip(images, masks, strict=True)):
        return None
    found = {other.partition(own)[::2] for own, other in zip(images, masks, strict=True)}
    return found.pop() if len(found) == 1 else None


def one_of(words: Sequence[str]) -> str:
    """`{left,right}Mask` for what differs in one place; "" where that is no plain word."""
    different = sorted(set(words), key=natural_key)
    if len(different) < 2:
        return "".join(different)
    front = re.sub(r"[^\W_]+$", "", common_beginning(different))
    back = common_beginning([word[len(front) :][::-1] for word in different])[::-1]
    back = re.sub(r"^[^\W_]*?(?=[\W_]|[A-Z](?=[a-z])|$)", "", back)
    middle = [word[len(front) : len(word) - len(back)] for word in different]
    return f"{front}{{{','.join(middle)}}}{back}" if all(map(_WORD.fullmatch, middle)) and all(middle) else ""


def starred(images: str, masks: str) -> Patterns:
    """With `*` for the names, where both patterns have them once and in one order."""
    names = _NAME.findall(images)
    if names != _NAME.findall(masks) or len(set(names)) < len(names):
        return images, masks
    return _NAME.sub("*", images), _NAME.sub("*", masks)
