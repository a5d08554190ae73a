"""Which images are of one patient (sequence, video, slide), as far as their folders and names tell.

Nothing says so for one's own images but how the files are called: `p012_03.png`, `case7_ED.nii.gz`, `Smith/001.png`. A
split that tears such files apart measures how well a model knows its own patients. What is found here is proposed and
shown; `--groups` says it differently, or that there are none.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from rwkvctl.base.errors import UserError
from rwkvctl.data.convert.raw_files import RawFile
from rwkvctl.data.store.splits import MIN_GROUPS

NONE = "none"

_OF_ONE = re.compile(
    r"(?:patient|pat|pt|p|subject|subj|sub|case|pid|person|donor|animal|mouse|rat|video|vid|sequence|seq|clip|series"
    r"|study|exam|scan|volume|vol|stack|slide|wsi|core|eye|id)[-_ ]?\d+$",
    re.IGNORECASE,
)
"""Ends in the number of something of which there may be several images."""
_OF_MANY = re.compile(
    r"(?:site|cent(?:er|re)|hospital|batch|fold|class|label|grade|stage|level|device|scanner|dataset|version|part|phase"
    r"|train|val|test)[-_ ]?\d*$",
    re.IGNORECASE,
)
"""Ends in what many patients have in common."""
_DATE = r"(?:19|20)\d{2}[-_.]?(?:0[1-9]|1[0-2])[-_.]?(?:0[1-9]|[12]\d|3[01])"
_FIELDS = re.compile(rf"(?<!\d){_DATE}(?!\d)|[^\W_]+")
_INNER = re.compile(r"(.*\d)(?:[^\W\d_]|(?:frame|slice|img|image|od|os|ed|es)\d*|[fzts]\d+)", re.IGNORECASE)
"""A field that ends in a letter or a frame's number: `12L`, `p3frame07`."""
ENOUGH = 6
"""So many groups are no accident, whatever their names."""
MOST_SHARE = 0.5
"""No group holds more of the images: such a part of the names is rather a kind of image."""


@dataclass(frozen=True)
class Groups:
    """Image id -> group, for the images that have one, and what told it."""

    of: Mapping[str, str]
    rule: str

    def __str__(self) -> str:
        names = Counter(self.of.values())
        largest = max(names.values(), default=0)
        return f"{len(names)} groups of up to {largest} images by {self.rule}"

    def note(self, splits: bool = True) -> str:
        """The line that shows them, with what becomes of them."""
        kept = (
            "kept together by the default split"
            if splits and len(set(self.of.values())) >= MIN_GROUPS
            else ("which the published splits do not keep together")
        )
        return f"{self}: {kept}; not so? --groups none, or --groups with a pattern of your own"


def proposed(paths: Mapping[str, str], choice: str | None = None) -> Groups | None:
    """The groups of images: id -> path below their folder, without the extension. None when nothing tells any.

    choice: None to look for them, `none`, or a regular expression whose match, or whose first group, in the path is the
    group's name.
    """
    if choice == NONE:
        return None
    if choice is not None:
        return _matched(paths, choice)
    return _by_folder(paths) or _by_name(paths)


def _matched(paths: Mapping[str, str], pattern: str) -> Groups:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UserError(f"--groups {pattern!r}: is not a regular expression ({error})") from error
    found = {key: match for key, path in paths.items() if (match := compiled.search(path))}
    missing = sorted(paths[key] for key in paths.keys() - found.keys())
    if missing:
        raise UserError(f"--groups {pattern!r}: does not match {len(missing)} images, for example {missing[0]}")
    return Groups({key: match[1 if compiled.groups else 0] for key, match in found.items()}, f"--groups {pattern}")


def _by_folder(paths: Mapping[str, str]) -> Groups | None:
    """The outermost folder that tells images apart: `Smith/eye1/001` is of Smith."""
    parts = {key: path.split("/")[:-1] for key, path in paths.items()}
    for depth in range(max(map(len, parts.values()), default=0)):
        of = {key: "/".join(own[: depth + 1]) for key, own in parts.items() if len(own) > depth}
        if _plausible(of, len(paths)):
            return Groups(of, f"folder ({_example(of, paths)})")
    return None


def _by_name(paths: Mapping[str, str]) -> Groups | None:
    """The shortest beginning of the names that holds a number and is common to several: of `s2_p012_03`, `s2_p012`."""
    heads = {key: _heads(path.rpartition("/")[2]) for key, path in paths.items()}
    for depth in range(max(map(len, heads.values()), default=0)):
        of = {
            key: f"{paths[key].rpartition('/')[0]}/{own[depth]}".lstrip("/")
            for key, own in heads.items()
            if len(own) > depth and any(c.isdigit() for c in own[depth])
        }
        if _plausible(of, len(paths)):
            return Groups(of, f"name ({_example(of, paths)})")
    return None


def _heads(name: str) -> list[str]:
    """The beginnings of a name, the shortest first: `Image_01L` has `Image` and `Image_01`."""
    fields = list(_FIELDS.finditer(name))
    heads = []
    for number, field in enumerate(fields):
        inner = _INNER.fullmatch(field[0])
        if inner:
            heads.append(name[: field.start() + len(inner[1])])
        if number < len(fields) - 1:
            heads.append(name[: field.end()])
    return heads


def _plausible(of: Mapping[str, str], total: int) -> bool:
    """Enough groups to split by, whose names are no kinds of images or days; most images share one with others."""
    sizes = Counter(of.values())
    shared = sum(size for size in sizes.values() if size > 1)
    if len(sizes) < MIN_GROUPS or shared < total / 2 or max(sizes.values()) > max(2, MOST_SHARE * total):
        return False
    names = [name.rpartition("/")[2] for name in sizes]
    if any(_OF_MANY.search(name) or re.fullmatch(_DATE, name) for name in names):
        return False
    return len(sizes) >= ENOUGH or all(_OF_ONE.search(name) for name in names)


def equal_files(files: Mapping[str, RawFile]) -> list[list[str]]:
    """The ids of files with equal bytes, two or more in a cluster: the same volume under several names. Only files of
    one size are read."""
    by_size: dict[int, list[str]] = {}
    for key, file in files.items():
        by_size.setdefault(file.size, []).append(key)
    found: dict[str, list[str]] = {}
    for keys in by_size.values():
        for key in keys if len(keys) > 1 else ():
            with files[key].open() as stream:
                found.setdefault(hashlib.file_digest(stream, "sha256").hexdigest(), []).append(key)  # type: ignore[arg-type]
    return [keys for keys in found.values() if len(keys) > 1]


def _example(of: Mapping[str, str], paths: Mapping[str, str]) -> str:
    group = next(name for name, size in Counter(of.values()).items() if size > 1)
    members = [paths[key] for key, own in of.items() if own == group][:2]
    return f"{' and '.join(members)} are of {group}"
