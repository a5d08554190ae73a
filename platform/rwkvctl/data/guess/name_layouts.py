"""Patterns of images and masks that lie in one folder, or in folders with files of the same names."""

from __future__ import annotations

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator

from rwkvctl.data.convert.name_words import says_mask
from rwkvctl.data.convert.sources import RawFile, natural_key
from rwkvctl.data.guess.looks import LEAST, are_masks
from rwkvctl.data.guess.stems import PLAIN, Folders, Patterns


def of_suffixes(folders: Folders) -> Iterator[Patterns]:
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
    top = _top(folders)
    if len(everywhere) == 1:
        yield f"{top}*", f"{top}*{everywhere[0]}"
        if any(tail.startswith(everywhere[0]) for tail in endings if tail != everywhere[0]):  # `_mask_1`, of a few
            yield f"{top}*", f"{top}*{everywhere[0]}*"
    elif everywhere and len({tail[0] for tail in everywhere}) == 1:
        words = ",".join(sorted((tail[1:] for tail in everywhere), key=natural_key))
        yield f"{top}*", f"{top}*{everywhere[0][0]}{{{words}}}"
        for tail in everywhere:
            yield f"{top}*", f"{top}*{tail}"


def of_two_suffixes(folders: Folders) -> Iterator[Patterns]:
    """`*_image` and `*_label`."""
    yield from _of_words(folders, re.compile(r"(.*?)([_\-. ][^\W\d_]+\d?)"), lambda word: f"*{word}", 2)


def of_beginnings(folders: Folders) -> Iterator[Patterns]:
    """`image_*` and `label_*`."""
    yield from _of_words(folders, re.compile(r"([^\W\d_]+[_\-. ]?)(.+)"), lambda word: f"{word}*", 1)


def _of_words(
    folders: Folders, pattern: re.Pattern[str], shown: Callable[[str], str], place: int
) -> Iterator[Patterns]:
    """Two words, one before or behind every name of an image, the other those of the masks."""
    by_word: dict[str, dict[str, RawFile]] = defaultdict(dict)
    for files in folders.values():
        for file in files:
            if match := pattern.fullmatch(file.stem):
                by_word[match[place]][f"{file.parent}/{match[3 - place]}"] = file
    words = sorted(by_word, key=lambda word: -len(by_word[word]))[:6]
    for image, mask in itertools.permutations((word for word in words if PLAIN.fullmatch(word)), 2):
        both = sorted(by_word[image].keys() & by_word[mask].keys())
        if len(both) < max(2, LEAST * len(by_word[image])) or says_mask(image):
            continue
        if says_mask(mask) or are_masks([by_word[mask][own] for own in both], [by_word[image][own] for own in both]):
            top = _top(folders)
            yield f"{top}{shown(image)}", f"{top}{shown(mask)}"


def of_endings(folders: Folders) -> Iterator[Patterns]:
    """`*.jpg` and `*.png` of one name."""
    by_ending: dict[str, dict[str, RawFile]] = defaultdict(dict)
    for files in folders.values():
        for file in files:
            by_ending[file.suffix][f"{file.parent}/{file.stem}"] = file
    for image, mask in itertools.permutations(by_ending, 2):
        both = sorted(by_ending[image].keys() & by_ending[mask].keys())
        if len(both) < max(2, LEAST * len(by_ending[image])):
            continue
        if are_masks([by_ending[mask][own] for own in both], [by_ending[image][own] for own in both]):
            yield f"{_top(folders)}*{image}", f"{_top(folders)}*{mask}"


def of_equal_names(folders: Folders) -> Iterator[Patterns]:
    """A folder a case, with files of the same names in each: `**/image` and `**/mask`."""
    by_stem: dict[str, dict[str, RawFile]] = defaultdict(dict)
    for folder, files in folders.items():
        for file in files:
            by_stem[file.stem][folder] = file
    least = max(2, LEAST * len(folders))
    often = [stem for stem, own in by_stem.items() if len(own) >= least and PLAIN.fullmatch(stem)]
    for image, mask in itertools.permutations(often[:6], 2):
        if says_mask(image):
            continue
        both = sorted(by_stem[image].keys() & by_stem[mask].keys())
        sides = [by_stem[mask][own] for own in both], [by_stem[image][own] for own in both]
        if both and (says_mask(mask) or are_masks(*sides)):
            yield f"**/{image}", f"**/{mask}"


def _top(folders: Folders) -> str:
    return "**/" if len(folders) > 1 else ""
