"""What the volumes of a source are for, by their names and a few voxels: images, and masks of them.

Of every path the words that many files have stay (`ct`, `seg`, `labels`), and the others become `*`: what is left says
what a file is for (`*/ct`, `*/ct_seg`), and what was taken out says of which case it is. Or a case is a folder, and
what is below it is called the same in all (`**/pre/FLAIR`, `**/wmh`). Or numbers in the names tell cases apart.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from rwkvctl.base.errors import BadFile
from rwkvctl.data.convert import name_words, part_folders, voxel_files
from rwkvctl.data.convert.formats import scan_pairs
from rwkvctl.data.convert.sources import RawFile
from rwkvctl.data.convert.voxel_files import VoxelFile
from rwkvctl.data.guess import numbered_layouts
from rwkvctl.data.guess.looks import LEAST

_WORDS = (re.compile(r"[^\W\d_]+|\d+"), re.compile(r"[^\W_]+"))
"""Of names: letters and digits apart, or together."""
_MOST_VALUES, _MOST_ROLES, _MOST_ANCHORS = 64, 200, 12


@dataclass
class Role:
    """Files that are for the same thing, by case."""

    template: str
    files: dict[tuple[str, ...], RawFile] = field(default_factory=dict)

    @property
    def says_mask(self) -> bool:
        return name_words.says_mask(self.template)


def found(files: Sequence[RawFile]) -> tuple[list[Role], list[Role]] | None:
    """The images' roles, the one that most masks are of first, and the masks'; None where there are none."""
    own = _best(_hypotheses(files))
    if own is not None:
        return own
    kinds = numbered_layouts.kinds(files, voxel_files.stem)
    return _best([[Role("/".join(kind.parts), dict(kind.files)) for kind in kinds]])


def _best(hypotheses: Iterable[list[Role]]) -> tuple[list[Role], list[Role]] | None:
    """Roles of images and of masks that share most cases, with most masks, in the fewest roles."""
    best: tuple[tuple[float, ...], list[Role], list[Role]] | None = None
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


def _hypotheses(files: Sequence[RawFile]) -> Iterator[list[Role]]:
    """Roles, for each number of files from which on a word may be no case's."""
    for words in _WORDS:
        stems = [f"{file.parent}/{voxel_files.stem(file)}".lstrip("/") for file in files]
        counts = Counter(word for stem in stems for word in set(words.findall(stem)))
        tried = set[tuple[str, ...]]()
        for least in sorted(set(counts.values()), reverse=True):
            if least < 2:
                break
            roles: dict[str, Role] = {}
            for file, stem in zip(files, stems, strict=True):
                template, case = _template(stem, words, counts, least)
                role = roles.setdefault(template, Role(template))
                if case in role.files:
                    break
                role.files[case] = file
            else:
                names = tuple(sorted(roles))
                if names not in tried:
                    tried.add(names)
                    yield list(roles.values())
    yield from _by_case_folders(files)


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


def _told_apart(roles: Sequence[Role]) -> tuple[list[Role], list[Role]] | None:
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


def with_own_masks(images: Sequence[Role], masks: Sequence[Role]) -> tuple[list[Role], list[Role]] | None:
    """Several images a case, each with a mask that is called after it, `*_ED` and `*_ED_gt`; None where a mask is of no
    such image, or there is one."""
    found: dict[tuple[str, str], dict[str, tuple[Role, Role]]] = {}
    for mask, image in itertools.product(masks, images):
        folder, _, name = image.template.rpartition("/")
        own_folder, _, own_name = mask.template.rpartition("/")
        before, _, behind = own_name.partition(name)
        if folder == own_folder and name in own_name:
            found.setdefault((before, behind), {}).setdefault(mask.template, (image, mask))
    for pairs in found.values():
        own = [image.template for image, _ in pairs.values()]
        if len(pairs) == len(masks) == len(set(own)) > 1:
            return [image for image, _ in pairs.values()], [mask for _, mask in pairs.values()]
    return None


def _same_cases(role: Role, first: Role) -> bool:
    return len(role.files.keys() & first.files.keys()) >= LEAST * len(first.files)


def _by_case_folders(files: Sequence[RawFile]) -> Iterator[list[Role]]:
    """Roles of what is called the same below folders of cases, which are those that have a file of one name."""
    stems = {file.path: voxel_files.stem(file) for file in files}
    often = Counter(stems.values())
    for anchor, n in often.most_common(_MOST_ANCHORS):
        cases = {file.parent for file in files if stems[file.path] == anchor}
        if n < 2:
            break
        if "" in cases:
            continue
        depths = {case.count("/") for case in cases}
        top = "*/" * (depths.pop() + 1) if len(depths) == 1 else "**/"
        roles: dict[str, Role] = {}
        for file in files:
            above = [file.parent, *_above(file.parent)]
            case = next((folder for folder in above if folder in cases), None)
            if case is not None:
                own = f"{file.parent}/{stems[file.path]}"[len(case) + 1 :]
                roles.setdefault(own, Role(top + _literal(own))).files[(case,)] = file
        yield list(roles.values())


def _above(folder: str) -> Iterator[str]:
    while "/" in folder:
        folder = folder.rpartition("/")[0]
        yield folder


@functools.lru_cache(maxsize=1024)
def _holds_labels(file: RawFile) -> bool:
    """By its voxels: whole numbers, of few kinds."""
    try:
        voxels = voxel_files.read(VoxelFile(file)).voxels
        return len(scan_pairs.label_values(file, voxels)) <= _MOST_VALUES
    except BadFile:
        return False
