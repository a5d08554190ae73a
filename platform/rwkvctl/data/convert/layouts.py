"""Patterns that images and masks may be paired by, as folders and names of a source suggest them.

Which of two folders, endings or names are the masks, a word says (`Masken`, `_label`), or else a look at a few files.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence

from rwkvctl.data.convert import mask_contents, numbered_layouts, part_folders
from rwkvctl.data.convert.discover import common_beginning, natural_key
from rwkvctl.data.convert.name_words import says_mask
from rwkvctl.data.convert.sources import RawFile

Folders = dict[str, list[RawFile]]
Patterns = tuple[str, str]
"""For `--images` and `--masks`."""

LEAST = 0.5
"""What fits a smaller share of the images is no layout."""
_MOST_TRIES, _MOST_FOLDERS = 16, 40
_LOOKED_AT = 3
_LABELS = 8
"""A file of so few levels is no photograph where others have far more."""
_PLAIN = re.compile(r"[^*?\[\]{},]+")
"""Names that can stand in a pattern as they are."""


def candidates(files: Sequence[RawFile]) -> Iterator[Patterns]:
    """Patterns for images and masks, the likelier first."""
    folders: Folders = {}
    for file in files:
        folders.setdefault(file.parent, []).append(file)
    ways = (
        _of_folders,
        _of_trees,
        _of_numbered_folders,
        _of_part_names,
        _of_parts,
        _of_leaves,
        _of_suffixes,
        _of_two_suffixes,
        _of_beginnings,
        _of_endings,
        _of_equal_names,
    )
    made = dict.fromkeys(patterns for way in ways for patterns in itertools.islice(way(folders), _MOST_TRIES // 2))
    yield from list(made)[:_MOST_TRIES]


def by_numbers(files: Sequence[RawFile]) -> Iterator[Patterns]:
    """Patterns of what numbers tell apart, in whatever folders: `Training400/*/*`, `Annotation-Training400/Cup/*/*`."""
    found = numbered_layouts.kinds(files)
    if len(found) < 2:
        return
    most = {kind: max(map(mask_contents.levels, kind.some[:_LOOKED_AT])) for kind in found}
    few = mask_contents.MOST_LEVELS
    masks = [kind for kind in found if most[kind] <= (few if says_mask(kind.words) else 2)]
    masks = masks or [kind for kind in found if 0 < most[kind] <= few and 2 * most[kind] < max(most.values())]
    fewest = _LABELS if max(most.values()) > 2 * _LABELS else 2
    images = [kind for kind in found if kind not in masks and most[kind] > fewest]
    masks.sort(key=lambda kind: not says_mask(kind.words))
    told = numbered_layouts.patterns(images, masks, lambda file: mask_contents.levels(file) > 2)
    yield from itertools.islice(told, _MOST_TRIES // 2)


def may_be_masks(masks: Sequence[RawFile], images: Sequence[RawFile]) -> bool:
    """Whether a few images have more levels than a few masks, as far as they can be read."""
    few = [mask_contents.levels(file) for file in masks[:_LOOKED_AT]]
    many = [mask_contents.levels(file) for file in images[:_LOOKED_AT]]
    return not max(few) or not min(many) or max(many) > max(_LABELS, *few)


def _are_masks(masks: Sequence[RawFile], images: Sequence[RawFile]) -> bool:
    """Whether a few of the files consist of a few values, and those of the other side of many more."""
    few = [mask_contents.levels(file) for file in masks[:_LOOKED_AT]]
    many = [mask_contents.levels(file) for file in images[:_LOOKED_AT]]
    return 0 < max(few) <= mask_contents.MOST_LEVELS and min(many) > 2 * max(few)


# Folders of their own -----------------------------------------------------------------------------------------------


def _of_folders(folders: Folders) -> Iterator[Patterns]:
    """A folder of masks beside one of images, at one place or at many: `*/Fotos/*` and `*/Masken/*`."""
    named = any(says_mask(folder) for folder in folders)
    for mask, image in itertools.permutations(_some(folders), 2):
        parts, own = mask.split("/"), image.split("/")
        differ = (n for n, pair in enumerate(zip(parts, own, strict=False)) if pair[0] != pair[1])
        depth = next(differ, None)
        if depth is None:
            continue
        if named and (not says_mask(parts[depth]) or says_mask(own[depth])):
            continue
        if not named and not _are_masks(folders[mask], folders[image]):
            continue
        front = "/".join(parts[:depth])
        alone = not front or all(path == front or path.startswith(f"{front}/") for path in folders)
        deeper = len(parts) - len(own)  # a folder more for annotators or classes
        below = "**/" if len(own) > depth + 1 and deeper <= 0 else ""
        names = _names_of(own[depth], parts[depth], folders, alone, (image, mask))
        top = f"{front}/".lstrip("/") if alone else "*/" * depth
        sides = _written(own[depth], "i"), _written(parts[depth], "m")
        yield f"{top}{sides[0]}/{below}{names[0]}", f"{top}{sides[1]}/{below}{'*/' * max(0, deeper)}{names[1]}"
        if len(own) > depth + 1 and len(parts) > depth + 1 and own[depth + 1 :] != parts[depth + 1 :]:
            yield f"{_written(image, 'i')}/{names[0]}", f"{_written(mask, 'm')}/{names[1]}"
        if not alone:
            top = "*/" * (depth - 1) + "{id}/"
            yield f"{top}{sides[0]}/*", f"{top}{sides[1]}/{{n}}"


def _of_trees(folders: Folders) -> Iterator[Patterns]:
    """A tree of masks beside one of images, in which names of masks go on behind those of images: `photos/**/*_photo`
    and `fine/**/*_fine_labels`, `fine/**/*_fine_colours`."""
    trees: dict[str, dict[str, list[str]]] = defaultdict(dict)
    for folder, files in folders.items():
        top, _, below = folder.partition("/")
        trees[top][below] = [file.stem for file in files]
    for mask, image in itertools.permutations((top for top in trees if _PLAIN.fullmatch(top)), 2):
        if says_mask(image):
            continue
        stems = [stem for own in trees[image].values() for stem in own]
        back = _common(stems)[1]
        tails: Counter[str] = Counter()
        for below, own in trees[mask].items():
            ids = {stem.removesuffix(back) for stem in trees[image].get(below, ())}
            for stem in own:
                cuts = (cut.start() for cut in re.finditer(r"[_\-. ]|$", stem))
                tails.update(stem[cut:] for cut in cuts if stem[:cut] in ids)
        below = "**/" if any(trees[image]) else ""
        for tail, n in tails.most_common(_MOST_TRIES // 2):
            if tail and n >= max(2, LEAST * len(stems)) and _PLAIN.fullmatch(tail + back + "x"):
                yield f"{image}/{below}*{back}", f"{mask}/{below}*{tail}"


def _of_numbered_folders(folders: Folders) -> Iterator[Patterns]:
    """Images in several folders that a number tells apart, their masks in one: `images_part_{n}/*` and `masks/*`."""
    alike: dict[str, list[str]] = defaultdict(list)
    for folder in folders:
        for number in re.finditer(r"\d+", folder):
            alike[f"{folder[: number.start()]}{{n}}{folder[number.end() :]}"].append(folder)
    for template, own in alike.items():
        images = [file for folder in own for file in folders[folder]]
        if len(own) < 2 or says_mask(template) or not _PLAIN.fullmatch(template.replace("{n}", "")):
            continue
        for mask, files in folders.items():
            if mask in own or not _PLAIN.fullmatch(mask) or len(files) < LEAST * len(images):
                continue
            if says_mask(mask) or _are_masks(files, images):
                names = _names([file.stem for file in images], [file.stem for file in files])
                yield f"{template}/{names[0]}", f"{mask}/{names[1]}"


def _some(folders: Folders) -> list[str]:
    """Some folders, evenly spread, where there are many."""
    names = list(folders)
    step = max(1, len(names) // _MOST_FOLDERS)
    return names[::step][:_MOST_FOLDERS]


def _written(folder: str, name: str) -> str:
    """A folder's name as a part of a pattern; signs that mean something there are left open, under `name`."""
    return re.sub(r"[*?\[\]{}](?:.*[*?\[\]{}])?", f"{{{name}}}", folder)


def _names_of(image: str, mask: str, folders: Folders, alone: bool, one: tuple[str, str]) -> Patterns:
    """What the names in all folders called `image` and `mask` have around what they share."""
    if alone:
        return _names([file.stem for file in folders[one[0]]], [file.stem for file in folders[one[1]]])
    sides = [
        {path.rpartition("/")[0]: path for path in folders if path.rpartition("/")[2] == name} for name in (image, mask)
    ]
    both = sorted(sides[0].keys() & sides[1].keys()) or [""]
    found = [
        _names_of("", "", folders, True, (sides[0].get(top, one[0]), sides[1].get(top, one[1]))) for top in both[:8]
    ]
    return _joined([names[0] for names in found]), _joined([names[1] for names in found])


def _joined(stems: Sequence[str]) -> str:
    """`*_{test,train}` of `*_test` and `*_train`; `*` where that cannot be written."""
    if len(set(stems)) == 1:
        return stems[0]
    plain = all(stem.startswith("*") and stem.count("*") == 1 and not set(stem) & set("{},[]?") for stem in stems)
    return "*" + (_any_of({stem[1:] for stem in stems}) if plain else "")


def _of_part_names(folders: Folders) -> Iterator[Patterns]:
    """Folders whose names say the part among other things: `images_{split}/*` and `masks_{split}/*`."""
    shared: dict[str, list[str]] = defaultdict(list)
    for folder in folders:
        if (
            template := re.sub(
                r"[^\W\d_]+", lambda word: "{split}" if part_folders.part_of(word[0]) else word[0], folder
            )
        ) != folder:
            shared[template].append(folder)
    templates = [template for template, own in shared.items() if len(own) > 1 and template.count("{split}") == 1]
    for image, mask in itertools.permutations(templates, 2):
        if not says_mask(mask) or says_mask(image):
            continue
        pairs = list(zip(sorted(shared[image]), sorted(shared[mask]), strict=False))
        names = [_names([f.stem for f in folders[one]], [f.stem for f in folders[other]]) for one, other in pairs]
        yield f"{image}/{_joined([own[0] for own in names])}", f"{mask}/{_joined([own[1] for own in names])}"


def _of_parts(folders: Folders) -> Iterator[Patterns]:
    """Folders for training and test that call their own folders differently: `*/{imgs,photos}/*`, `*/{labels,gt}/*`."""
    for depth in range(max((folder.count("/") for folder in folders), default=0)):
        own: dict[str, list[str]] = defaultdict(list)
        for folder in folders:
            parts = folder.split("/")
            if len(parts) == depth + 2 and part_folders.part_of(parts[depth]):
                own["/".join(parts[: depth + 1])].append(folder)
        pairs = [pair for inner in own.values() if (pair := _two_of(inner, folders))]
        if len(pairs) < 2 or len(pairs) < len(own):
            continue
        names = [_names([f.stem for f in folders[image]], [f.stem for f in folders[mask]]) for image, mask in pairs]
        sides = []
        for side in (0, 1):
            inner = [pair[side].rpartition("/")[2] for pair in pairs]
            sides.append(f"{'*/' * (depth + 1)}{_any_of(inner)}/{_joined([own[side] for own in names])}")
        yield sides[0], sides[1]


def _of_leaves(folders: Folders) -> Iterator[Patterns]:
    """Pairs of folders at several depths, `Train/image` and `Test/CVC-300/images`: `**/{image,images}/*`."""
    inner: dict[str, list[str]] = defaultdict(list)
    for folder in folders:
        inner[folder.rpartition("/")[0]].append(folder)
    pairs = [_two_of(own, folders) for own in inner.values()]
    if len(pairs) < 2 or None in pairs or len({top.count("/") for top in inner}) < 2:
        return
    images, masks = zip(*filter(None, pairs), strict=True)
    names = [
        _names([f.stem for f in folders[image]], [f.stem for f in folders[mask]])
        for image, mask in zip(images, masks, strict=True)
    ]
    yield (
        f"**/{_any_of([own.rpartition('/')[2] for own in images])}/{_joined([own[0] for own in names])}",
        f"**/{_any_of([own.rpartition('/')[2] for own in masks])}/{_joined([own[1] for own in names])}",
    )


def _two_of(inner: Sequence[str], folders: Folders) -> tuple[str, str] | None:
    """The folder of images and that of masks among those of one part; None where there are others."""
    masks = [folder for folder in inner if says_mask(folder.rpartition("/")[2])]
    images = [folder for folder in inner if folder not in masks]
    if len(inner) == 2 and not masks:
        looks = [pair for pair in itertools.permutations(inner) if _are_masks(folders[pair[1]], folders[pair[0]])]
        return (looks[0][0], looks[0][1]) if looks else None
    return (images[0], masks[0]) if len(images) == len(masks) == 1 else None


def _any_of(words: Sequence[str] | set[str]) -> str:
    """`{a,b}`, or the one word."""
    different = sorted(set(words))
    return different[0] if len(different) == 1 else "{" + ",".join(different) + "}"


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
    front = re.sub(r"[^\W_]+$", "", common_beginning(names))
    back = common_beginning([name[len(front) :][::-1] for name in names])[::-1]
    cut = re.search(r"[\W_]", back)
    return front, back[cut.start() :] if cut else ""


# In one folder ------------------------------------------------------------------------------------------------------


def _of_suffixes(folders: Folders) -> Iterator[Patterns]:
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


def _of_two_suffixes(folders: Folders) -> Iterator[Patterns]:
    """`*_image` and `*_label`."""
    yield from _of_words(folders, re.compile(r"(.*?)([_\-. ][^\W\d_]+\d?)"), lambda word: f"*{word}", 2)


def _of_beginnings(folders: Folders) -> Iterator[Patterns]:
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
    for image, mask in itertools.permutations((word for word in words if _PLAIN.fullmatch(word)), 2):
        both = sorted(by_word[image].keys() & by_word[mask].keys())
        if len(both) < max(2, LEAST * len(by_word[image])) or says_mask(image):
            continue
        if says_mask(mask) or _are_masks([by_word[mask][own] for own in both], [by_word[image][own] for own in both]):
            top = _top(folders)
            yield f"{top}{shown(image)}", f"{top}{shown(mask)}"


def _of_endings(folders: Folders) -> Iterator[Patterns]:
    """`*.jpg` and `*.png` of one name."""
    by_ending: dict[str, dict[str, RawFile]] = defaultdict(dict)
    for files in folders.values():
        for file in files:
            by_ending[file.suffix][f"{file.parent}/{file.stem}"] = file
    for image, mask in itertools.permutations(by_ending, 2):
        both = sorted(by_ending[image].keys() & by_ending[mask].keys())
        if len(both) < max(2, LEAST * len(by_ending[image])):
            continue
        if _are_masks([by_ending[mask][own] for own in both], [by_ending[image][own] for own in both]):
            yield f"{_top(folders)}*{image}", f"{_top(folders)}*{mask}"


def _of_equal_names(folders: Folders) -> Iterator[Patterns]:
    """A folder a case, with files of the same names in each: `**/image` and `**/mask`."""
    by_stem: dict[str, dict[str, RawFile]] = defaultdict(dict)
    for folder, files in folders.items():
        for file in files:
            by_stem[file.stem][folder] = file
    least = max(2, LEAST * len(folders))
    often = [stem for stem, own in by_stem.items() if len(own) >= least and _PLAIN.fullmatch(stem)]
    for image, mask in itertools.permutations(often[:6], 2):
        if says_mask(image):
            continue
        both = sorted(by_stem[image].keys() & by_stem[mask].keys())
        sides = [by_stem[mask][own] for own in both], [by_stem[image][own] for own in both]
        if both and (says_mask(mask) or _are_masks(*sides)):
            yield f"**/{image}", f"**/{mask}"


def _top(folders: Folders) -> str:
    return "**/" if len(folders) > 1 else ""
