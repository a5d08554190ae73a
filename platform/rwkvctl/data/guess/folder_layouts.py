"""Patterns of images and masks that lie in folders of their own."""

from __future__ import annotations

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from rwkvctl.data.convert import part_folders
from rwkvctl.data.convert.name_words import says_mask
from rwkvctl.data.guess.looks import LEAST, are_masks
from rwkvctl.data.guess.stems import PLAIN, Folders, Patterns, any_of, around_ids, common_ends, joined

MOST_TRIES, _MOST_FOLDERS = 16, 40


def of_folders(folders: Folders) -> Iterator[Patterns]:
    """A folder of masks beside one of images, at one place or at many: `*/Fotos/*` and `*/Masken/*`."""
    named = any(says_mask(folder) for folder in folders)
    for mask, image in itertools.permutations(_some(folders), 2):
        parts, own = mask.split("/"), image.split("/")
        differ = (n for n, pair in enumerate(zip(parts, own, strict=False)) if pair[0] != pair[1])
        depth = next(differ, None)
        if depth is None or _are_other_parts(parts[depth], own[depth]):
            continue
        if named and (not says_mask(parts[depth]) or says_mask(own[depth])):
            continue
        if not named and not are_masks(folders[mask], folders[image]):
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


def _are_other_parts(first: str, second: str) -> bool:
    """`train` and `test`, neither of which has the masks of the other."""
    found = part_folders.part_of(first), part_folders.part_of(second)
    return None not in found and found[0] != found[1]


def of_trees(folders: Folders) -> Iterator[Patterns]:
    """A tree of masks beside one of images, in which names of masks go on behind those of images: `photos/**/*_photo`
    and `fine/**/*_fine_labels`, `fine/**/*_fine_colours`."""
    trees: dict[str, dict[str, list[str]]] = defaultdict(dict)
    for folder, files in folders.items():
        top, _, below = folder.partition("/")
        trees[top][below] = [file.stem for file in files]
    for mask, image in itertools.permutations((top for top in trees if PLAIN.fullmatch(top)), 2):
        if says_mask(image):
            continue
        stems = [stem for own in trees[image].values() for stem in own]
        back = common_ends(stems)[1]
        tails: Counter[str] = Counter()
        for below, own in trees[mask].items():
            ids = {stem.removesuffix(back) for stem in trees[image].get(below, ())}
            for stem in own:
                cuts = (cut.start() for cut in re.finditer(r"[_\-. ]|$", stem))
                tails.update(stem[cut:] for cut in cuts if stem[:cut] in ids)
        below = "**/" if any(trees[image]) else ""
        for tail, n in tails.most_common(MOST_TRIES // 2):
            if tail and n >= max(2, LEAST * len(stems)) and PLAIN.fullmatch(tail + back + "x"):
                yield f"{image}/{below}*{back}", f"{mask}/{below}*{tail}"


def of_numbered_folders(folders: Folders) -> Iterator[Patterns]:
    """Images in several folders that a number tells apart, their masks in one: `images_part_{n}/*` and `masks/*`."""
    alike: dict[str, list[str]] = defaultdict(list)
    for folder in folders:
        for number in re.finditer(r"\d+", folder):
            alike[f"{folder[: number.start()]}{{n}}{folder[number.end() :]}"].append(folder)
    for template, own in alike.items():
        images = [file for folder in own for file in folders[folder]]
        if len(own) < 2 or says_mask(template) or not PLAIN.fullmatch(template.replace("{n}", "")):
            continue
        for mask, files in folders.items():
            if mask in own or not PLAIN.fullmatch(mask) or len(files) < LEAST * len(images):
                continue
            if says_mask(mask) or are_masks(files, images):
                names = around_ids([file.stem for file in images], [file.stem for file in files])
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
        return around_ids([file.stem for file in folders[one[0]]], [file.stem for file in folders[one[1]]])
    sides = [
        {path.rpartition("/")[0]: path for path in folders if path.rpartition("/")[2] == name} for name in (image, mask)
    ]
    both = sorted(sides[0].keys() & sides[1].keys()) or [""]
    found = [
        _names_of("", "", folders, True, (sides[0].get(top, one[0]), sides[1].get(top, one[1]))) for top in both[:8]
    ]
    return joined([names[0] for names in found]), joined([names[1] for names in found])


def of_part_names(folders: Folders) -> Iterator[Patterns]:
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
        names = [around_ids([f.stem for f in folders[one]], [f.stem for f in folders[other]]) for one, other in pairs]
        yield f"{image}/{joined([own[0] for own in names])}", f"{mask}/{joined([own[1] for own in names])}"


def of_parts(folders: Folders) -> Iterator[Patterns]:
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
        names = [around_ids([f.stem for f in folders[image]], [f.stem for f in folders[mask]]) for image, mask in pairs]
        sides = []
        for side in (0, 1):
            inner = [pair[side].rpartition("/")[2] for pair in pairs]
            sides.append(f"{'*/' * (depth + 1)}{any_of(inner)}/{joined([own[side] for own in names])}")
        yield sides[0], sides[1]


def of_leaves(folders: Folders) -> Iterator[Patterns]:
    """Pairs of folders at several depths, `Train/image` and `Test/CVC-300/images`: `**/{image,images}/*`."""
    inner: dict[str, list[str]] = defaultdict(list)
    for folder in folders:
        inner[folder.rpartition("/")[0]].append(folder)
    pairs = [_two_of(own, folders) for own in inner.values()]
    if len(pairs) < 2 or None in pairs or len({top.count("/") for top in inner}) < 2:
        return
    images, masks = zip(*filter(None, pairs), strict=True)
    names = [
        around_ids([f.stem for f in folders[image]], [f.stem for f in folders[mask]])
        for image, mask in zip(images, masks, strict=True)
    ]
    yield (
        f"**/{any_of([own.rpartition('/')[2] for own in images])}/{joined([own[0] for own in names])}",
        f"**/{any_of([own.rpartition('/')[2] for own in masks])}/{joined([own[1] for own in names])}",
    )


def _two_of(inner: Sequence[str], folders: Folders) -> tuple[str, str] | None:
    """The folder of images and that of masks among those of one part; None where there are others."""
    masks = [folder for folder in inner if says_mask(folder.rpartition("/")[2])]
    images = [folder for folder in inner if folder not in masks]
    if len(inner) == 2 and not masks:
        looks = [pair for pair in itertools.permutations(inner) if are_masks(folders[pair[1]], folders[pair[0]])]
        return (looks[0][0], looks[0][1]) if looks else None
    return (images[0], masks[0]) if len(images) == len(masks) == 1 else None
