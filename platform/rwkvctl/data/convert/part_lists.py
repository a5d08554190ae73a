"""Lists of images that say what they are for: `train.txt`, `val.txt` and `test.txt`, as Pascal VOC has them in
`ImageSets/Segmentation`.

A line names an image by its id, file or path; what stands behind it in the line, such as its mask, is not looked at.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass

from rwkvctl.base.errors import BadFile, UserError
from rwkvctl.data.convert import part_folders, tables
from rwkvctl.data.convert.discover import Problems
from rwkvctl.data.convert.sources import RawFile, Source, natural_key
from rwkvctl.data.convert.table_columns import Tails

LISTS = "lists"
ENDINGS = (".txt", ".lst", ".list")
_SHOWN = 3


@dataclass(frozen=True)
class Lists:
    """The lists of a folder. of: path of an image -> part; unknown: by list, the lines that are no image."""

    folder: str
    files: tuple[RawFile, ...]
    of: Mapping[str, str]
    unknown: Mapping[str, Sequence[str]]

    def paired(self, images: Set[str]) -> float:
        """Of the images that are listed, the share of those among `images`."""
        return sum(path in images for path in self.of) / max(1, len(self.of))

    def note(self) -> str:
        return f"the parts are those of {', '.join(file.path for file in self.files)}"


def are_there(source: Source) -> bool:
    """Whether some folder has a list for training and one for another part, by their names."""
    return any("train" in files and len(files) > 1 for files in _by_folder(source).values())


def is_told(source: Source, text: str) -> bool:
    """Whether `--split-from` means lists, or names a folder of some."""
    return text == LISTS or any(_is_at(folder, text) for folder in _by_folder(source))


def read(source: Source, told: str, images: Sequence[RawFile], paired: Set[str]) -> Lists:
    """The lists in the folder `told`, or, of those in several, the ones of which most images are among `paired`.

    images: all that a line may mean. UserError without lists, for lists of nothing, of which none tells more than
    another, and for an image in two.
    """
    folders = _by_folder(source)
    wanted = {folder: own for folder, own in folders.items() if told == LISTS or _is_at(folder, told)}
    if not wanted:
        raise UserError(f"--split-from {told}: no train.txt with val.txt or test.txt in {source}; add them")
    tails = Tails(images)
    found = [_read(folder, own, tails) for folder, own in wanted.items()]
    found = sorted((own for own in found if own.of), key=lambda own: -own.paired(paired))
    if not found:
        folder = next(iter(wanted))
        file = wanted[folder]["train"]
        raise UserError(f"--split-from {told}: no line of {file.path} is an image by --images; correct one of them")
    if len(found) > 1 and found[0].paired(paired) == found[1].paired(paired) and found[0].of != found[1].of:
        both = f"{found[0].folder or '.'} and {found[1].folder or '.'}"
        raise UserError(f"--split-from {told}: there are lists in {both}; say which: --split-from {found[0].folder}")
    return found[0]


def _by_folder(source: Source) -> dict[str, dict[str, RawFile]]:
    """Folder -> part -> its list, where there is one for training; of several for one part that with the shortest
    name."""
    found: dict[str, dict[str, RawFile]] = defaultdict(dict)
    for file in source.files:
        if file.suffix not in ENDINGS or file.size > tables.MOST_BYTES:
            continue
        part = part_folders.part_of(file.stem)
        if part and len(file.stem) <= len(found[file.parent].get(part, file).stem):
            found[file.parent][part] = file
    return {folder: own for folder, own in found.items() if "train" in own}


def _is_at(folder: str, text: str) -> bool:
    return f"/{folder}".endswith(f"/{text.strip('/')}")


def _read(folder: str, files: Mapping[str, RawFile], tails: Tails) -> Lists:
    of: dict[str, str] = {}
    unknown: dict[str, list[str]] = {}
    for part, file in files.items():
        for line in _lines(file):
            image = _image(line, part, file, tails)
            if image is None:
                unknown.setdefault(file.path, []).append(line)
            elif of.setdefault(image.path, part) != part:
                other = files[of[image.path]]
                raise UserError(f"{file}: has {image.path}, which is in {other.name} too; remove it from one of them")
    return Lists(folder, tuple(files.values()), of, unknown)


def _lines(file: RawFile) -> list[str]:
    try:
        text = tables.decoded(file.read(), file)
    except BadFile as error:
        raise UserError(str(error)) from error
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]


def _image(line: str, part: str, file: RawFile, tails: Tails) -> RawFile | None:
    """What the whole line names, or its first word that names any: lines may have an image and its mask."""
    for word in dict.fromkeys((line, *re.split(r"[\t,;]", line), *line.split())):
        found = tails.of(word.strip().strip("\"'"), masks=False)
        if len(found) > 1:
            found = [own for own in found if part_folders.part_of(own.parent) == part] or found
        if len(found) > 1:
            both = f"{found[0].path} and {found[1].path}"
            raise UserError(f"{file}: {word.strip()} may be {both}; write more of the path")
        if found:
            return found[0]
    return None


# What becomes of images that are in none ------------------------------------------------------------------------------


def apply(lists: Lists, images: Set[str], unpaired: Iterable[tuple[RawFile, str]], problems: Problems) -> list[str]:
    """Notes of what is left out, and problems of images in lists that have no mask.

    images: the paths of those that have one; unpaired: images without and why. A list of which no image has a mask is
    left out whole, as that of a test part whose masks are kept back.
    """
    notes = [lists.note()]
    listed = {part: [path for path, own in lists.of.items() if own == part] for part in set(lists.of.values())}
    bare = {part for part, paths in listed.items() if not any(path in images for path in paths)}
    for part in sorted(bare):
        notes.append(f"the {len(listed[part])} images of the list for {part} have no masks and were left out")
    for file, why in unpaired:
        if lists.of.get(file.path, "") not in ("", *bare):
            problems.leave_out(file, why)
    if others := sorted(images - lists.of.keys(), key=natural_key):
        notes.append(f"{len(others)} images are in no list and were left out: {_first(others)}")
    notes += [f"{len(lines)} lines of {name} name no image: {_first(lines)}" for name, lines in lists.unknown.items()]
    return notes


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
