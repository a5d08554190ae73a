"""The options of `data prepare pairs` for a folder of volumes of unknown layout, from names and a few label files.

Of every path the words that many files have stay (`ct`, `seg`, `labels`), and the others become `*`: what is left says
what a file is for (`*/ct`, `*/ct_seg`), and what was taken out says of which case it is.
"""

from __future__ import annotations

import itertools
import re
import shlex
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from rwkvctl.base.errors import BadFile
from rwkvctl.data.convert import name_words, numbered_layouts, part_folders, voxel_files
from rwkvctl.data.convert.discover import common_beginning
from rwkvctl.data.convert.formats import scan_pairs
from rwkvctl.data.convert.layouts import LEAST
from rwkvctl.data.convert.sources import RawFile, Source, natural_key
from rwkvctl.data.convert.suggestion import Suggestion, classes_of, joined, listed
from rwkvctl.data.convert.voxel_files import VoxelFile

_WORDS = (re.compile(r"[^\W\d_]+|\d+"), re.compile(r"[^\W_]+"))
"""Of names: letters and digits apart, or together."""
_MOST_LABELS, _MOST_CLASSES, _MOST_ROLES = 8, 255, 40
_SHOWN = 6
_SAME_OBJECT = 0.5
"""DSC of two masks from which on they are of one thing, by two people."""


@dataclass
class _Role:
    """Files that are for the same thing, by case."""

    template: str
    files: dict[tuple[str, ...], RawFile] = field(default_factory=dict)

    @property
    def says_mask(self) -> bool:
        return name_words.says_mask(self.template)


def suggest(source: Source) -> Suggestion | None:
    """None where the volumes of a source are no images with masks."""
    files = [file for file in source.files if voxel_files.is_volume(file)]
    found = _best(_hypotheses(files))
    if found is None:
        kinds = numbered_layouts.kinds(files, voxel_files.stem)
        found = _best([[_Role("/".join(kind.parts), dict(kind.files)) for kind in kinds]])
    if found is None:
        return None
    images, masks = found
    beside = voxel_files.Beside(source.files)
    patterns = numbered_layouts.starred(images[0].template, _joined([role.template for role in masks]))
    parts = [Suggestion(dict(zip(("images", "masks"), patterns, strict=True)))]
    if len(images) > 1:
        others = " or ".join(f"--images {shlex.quote(role.template)}" for role in images[1:_SHOWN])
        parts.append(Suggestion({}, f"one contrast is taken of {len(images)}; another is {others}"))
    if len(masks) > 1:
        parts.append(_several(images[0], masks, beside))
    else:
        parts.append(classes_of(_values(list(masks[0].files.values()), beside)))
    if part_folders.are_parts(file.path for file in images[0].files.values()):
        parts.append(Suggestion({"split_from": "folders"}))
    return joined(parts)


# Roles by names -----------------------------------------------------------------------------------------------------


def _best(hypotheses: Iterable[list[_Role]]) -> tuple[list[_Role], list[_Role]] | None:
    """Roles of images and of masks that share most cases, with most masks, in the fewest roles."""
    best: tuple[tuple[float, ...], list[_Role], list[_Role]] | None = None
    for roles in hypotheses:
        if len(roles) < 2 or len(roles) > _MOST_ROLES:
            continue
        chosen = _told_apart(roles)
        if chosen is None:
            continue
        images, masks = chosen
        shared = len(images[0].files.keys() & set().union(*(role.files for role in masks)))
        used = sum(len(images[0].files.keys() & role.files.keys()) for role in masks)
        rank = (shared, used, -len(roles))
        if shared >= max(2, LEAST * len(images[0].files)) and (best is None or rank > best[0]):
            best = rank, images, masks
    return best[1:] if best else None


def _hypotheses(files: Sequence[RawFile]) -> Iterator[list[_Role]]:
    """Roles, for each number of files from which on a word may be no case's."""
    for words in _WORDS:
        stems = [f"{file.parent}/{voxel_files.stem(file)}".lstrip("/") for file in files]
        counts = Counter(word for stem in stems for word in set(words.findall(stem)))
        tried = set[tuple[str, ...]]()
        for least in sorted(set(counts.values()), reverse=True):
            if least < 2:
                break
            roles: dict[str, _Role] = {}
            for file, stem in zip(files, stems, strict=True):
                template, case = _template(stem, words, counts, least)
                role = roles.setdefault(template, _Role(template))
                if case in role.files:
                    break
                role.files[case] = file
            else:
                names = tuple(sorted(roles))
                if names not in tried:
                    tried.add(names)
                    yield list(roles.values())


def _template(stem: str, words: re.Pattern[str], counts: Mapping[str, int], least: int) -> tuple[str, tuple[str, ...]]:
    """`p1/p1_ct` -> `*/*_ct` and the case, `(p1, p1)`."""
    parts, case = [], []
    for part in stem.split("/"):
        if part_folders.part_of(part) and part != stem.split("/")[-1]:
            parts.append("*")
            case.append(part)
            continue
        made, end, own = "", 0, ""
        for word in words.finditer(part):
            between = part[end : word.start()]
            if counts[word[0]] >= least and not (own and not between):
                if own:
                    case.append(own)
                made, own = made + between + word[0], ""
            elif own:
                own += between + word[0]
            else:
                made, own = f"{made}{between}*", word[0]
            end = word.end()
        if own:
            case.append(own)
        parts.append(_literal(made + part[end:]))
    return "/".join(parts), tuple(case)


def _literal(text: str) -> str:
    return re.sub(r"[?\[\]{}]", "?", text)


def _told_apart(roles: Sequence[_Role]) -> tuple[list[_Role], list[_Role]] | None:
    """Which roles are images, the one with most cases that have a mask first, and which are masks."""
    masks = [role for role in roles if role.says_mask]
    images = [role for role in roles if not role.says_mask]
    if not masks or not images:  # `labels/ct` and `labels/seg`, or `a/` and `b/`
        masks = [role for role in roles if name_words.says_mask(role.template.rpartition("/")[2])]
        images = [role for role in roles if role not in masks]
    if not masks or not images:
        masks = [role for role in roles if _holds_labels(next(iter(role.files.values())))]
        images = [role for role in roles if role not in masks]
    pairs = [(len(a.files.keys() & b.files.keys()), a, b) for a, b in itertools.product(images, masks)]
    pairs = [pair for pair in pairs if pair[0]]
    if not pairs:
        return None
    most = max(pair[0] for pair in pairs)
    whole = [pair for pair in pairs if pair[0] >= LEAST * most]
    used_images = list(dict.fromkeys(id(pair[1]) for pair in whole))
    first = next(pair[1] for pair in whole if pair[0] == most)
    of_first = [b for _, a, b in whole if a is first]
    others = [role for role in images if id(role) in used_images and role is not first and _same_cases(role, first)]
    small = [role for role in masks if role not in of_first and role.files.keys() & first.files.keys()]
    return [first, *others], [*of_first, *small]


def _same_cases(role: _Role, first: _Role) -> bool:
    return len(role.files.keys() & first.files.keys()) >= LEAST * len(first.files)


def _joined(templates: Sequence[str]) -> str:
    """`*/liver` and `*/spleen` as `*/{liver,spleen}`."""
    if len(templates) == 1:
        return templates[0]
    front = _beginning(templates)
    back = _beginning([own[len(front) :][::-1] for own in templates])[::-1]
    words = sorted((own[len(front) : len(own) - len(back)] for own in templates), key=natural_key)
    if any(sign in word for word in words for sign in "*/,"):
        return f"{front}*{back}"
    return f"{front}{{{','.join(words)}}}{back}"


def _beginning(texts: Sequence[str]) -> str:
    """What all begin with, whole words of it."""
    same = common_beginning(texts)
    return re.sub(r"[^\W_]+$", "", same) if any(len(own) > len(same) for own in texts) else same


# What label files hold ----------------------------------------------------------------------------------------------


def _holds_labels(file: RawFile) -> bool:
    """By its voxels: whole numbers, of few kinds."""
    try:
        voxels = voxel_files.read(VoxelFile(file)).voxels
        return len(scan_pairs.label_values(file, voxels)) <= _MOST_CLASSES // 4
    except BadFile:
        return False


def _values(files: Sequence[RawFile], beside: voxel_files.Beside) -> set[float]:
    """The labels of some files, evenly spread; what cannot be read is told when they are prepared."""
    chosen = np.linspace(0, len(files) - 1, min(_MOST_LABELS, len(files))).round().astype(int)
    found: set[float] = set()
    for n in chosen:
        try:
            own = beside.of(files[n])
            found.update(scan_pairs.label_values(own, voxel_files.read(own).voxels))
        except BadFile:
            continue
    return found


def _several(images: _Role, masks: Sequence[_Role], beside: voxel_files.Beside) -> Suggestion:
    """What becomes of several masks an image: classes, where they lie apart, else those of one annotator."""
    templates = [role.template for role in masks]
    joined = _joined(templates)
    told = re.search(r"\{([^{}]*,[^{}]*)\}", joined)
    words = told[1].split(",") if told else sorted(templates, key=natural_key)
    classes = ",".join(["background", *words])
    if _of_one_thing(images, masks, beside):
        question = (
            f"masks of one thing are by several ({listed(words)}), --annotator says whose are taken; is each of a "
            f"class, --classes {shlex.quote(classes)} instead"
        )
        return Suggestion({"annotator": words[0]}, question)
    question = f"each of several masks an image is a class; is one wanted, --annotator {shlex.quote(words[0])} instead"
    return Suggestion({"classes": classes}, question)


def _of_one_thing(images: _Role, masks: Sequence[_Role], beside: voxel_files.Beside) -> bool:
    """Whether two masks of a case overlap by more than half."""
    of_case: dict[tuple[str, ...], list[RawFile]] = defaultdict(list)
    for role in masks:
        for case, file in role.files.items():
            of_case[case].append(file)
    for case in images.files:
        if len(of_case[case]) < 2:
            continue
        try:
            own = [voxel_files.read(beside.of(file)).voxels != 0 for file in of_case[case][:2]]
        except BadFile:
            continue
        if own[0].shape == own[1].shape and own[0].any() and own[1].any():
            return bool(2 * (own[0] & own[1]).sum() / (own[0].sum() + own[1].sum()) > _SAME_OBJECT)
    return False
