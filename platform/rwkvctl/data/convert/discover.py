"""Finding raw files by their names, pairing them, and reporting all that is wrong with a source at once."""

from __future__ import annotations

import hashlib
import itertools
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from rwkvctl.base.errors import UserError
from rwkvctl.data.convert import voxel_files
from rwkvctl.data.convert.sources import RawFile, Source, natural_key
from rwkvctl.data.images.files import EXTENSIONS
from rwkvctl.data.store.index import MOST_KEY_BYTES, is_key_letter

NO_MASK = "has no mask"
"""How problems of images begin that lack one."""
_SHOWN = 5
_VOXELS = (*voxel_files.ENDINGS, ".raw", ".zraw")
EXAMPLES = 3
"""Of each kind of problem."""


def find_root(source: Source, names: Iterable[str], what: str) -> str:
    """The folder at the top of `source` or up to 3 levels below that has all the subfolders `names` (lower case).

    UserError when there is none, or more than one.
    """
    wanted = set(names)
    level = [""]
    for _ in range(4):
        inner = {folder: source.subfolders(folder) for folder in level}
        found = [folder for folder in level if wanted <= {_name(path).lower() for path in inner[folder]}]
        if len(found) > 1:
            raise UserError(f"{source}: {what} found twice, in {found[0]} and {found[1]}; give one as --source")
        if found:
            return found[0]
        level = [path for paths in inner.values() for path in paths][:1000]
    raise UserError(f"{source}: no {what} here; give the folder or archive that holds it as --source")


def child(source: Source, root: str, name: str) -> str:
    """The subfolder of `root` called `name`, whatever its case."""
    return next(path for path in source.subfolders(root) if _name(path).lower() == name)


def _name(path: str) -> str:
    return path.rpartition("/")[2]


def relative(file: RawFile, root: str) -> str:
    """The path of a file below `root`: the same whatever folder or archive around it the user pointed at."""
    return file.path.removeprefix(f"{root}/") if root else file.path


def slug(text: str) -> str:
    """`text` in the alphabet of sample keys: small letters, marks and digits of any script, `_` and `-`."""
    normal = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).lower())
    return re.sub(" +", "_", "".join(c if is_key_letter(c) else " " for c in normal)).strip("_")


def common_beginning(texts: Sequence[str]) -> str:
    """The signs that all of `texts` begin with."""
    same = itertools.takewhile(lambda signs: len(set(signs)) == 1, zip(*texts, strict=False))
    return "".join(signs[0] for signs in same)


def normal_id(text: str) -> str:
    """What two names must have in common to be a pair: `Frame 07` -> `frame_07`, `007` -> `7`.

    Every letter, digit and sign counts, in whichever of Unicode's two spellings (macOS decomposes umlauts). Only case,
    the kind of white space and the zeros before a plain number do not.
    """
    name = re.sub(r"\s+", "_", unicodedata.normalize("NFC", text.strip()).lower())
    name = unicodedata.normalize("NFC", name)
    return name.lstrip("0") or "0" if name.isascii() and name.isdigit() else name


def sample_keys(prefix: str, names: Iterable[str], digits: int = 4) -> dict[str, str]:
    """The key of each sample by its id: `PREFIX_0007`, `PREFIX_müller_3`. Padded numbers sort like numbers.

    Ids that differ only in signs which a key cannot have, and those that are too long for one, end with a hash.
    """
    plain = {name: name.zfill(digits) if name.isascii() and name.isdigit() else slug(name) for name in names}
    uses = Counter(plain.values())
    most = MOST_KEY_BYTES - len(prefix.encode()) - 1
    keys = {}
    for name, text in plain.items():
        if uses[text] > 1 or not text or len(text.encode()) > most:
            ending = "-" + hashlib.sha256(name.encode()).hexdigest()[:8]
            text = text.encode()[: most - len(ending)].decode(errors="ignore") + ending
        keys[name] = f"{prefix}_{text}"
    return keys


def by_pattern(
    files: Iterable[RawFile], pattern: re.Pattern[str], problems: Problems, id_of: str = "id"
) -> dict[str, RawFile]:
    """normal_id -> file, in natural order, for each file whose path or the end of it (from a `/` on) matches `pattern`.

    The id is the pattern's group `id_of`. A second file with one id is a problem.
    """
    found: dict[str, RawFile] = {}
    anywhere = re.compile(rf"(?:.*/)?(?:{pattern.pattern})", pattern.flags | re.IGNORECASE)
    for file in files:
        match = anywhere.fullmatch(file.path)
        if match:
            add(found, normal_id(match[id_of]), file, problems)
    return dict(sorted(found.items(), key=lambda item: natural_key(item[0])))


def add(found: dict[str, RawFile], name: str, file: RawFile, problems: Problems) -> None:
    """found[name] = file, unless that is a problem."""
    if not name:
        problems.add(f"{file}: has no name before its extension; rename it")
    elif name in found:
        problems.add(f"{file}: has the same id as {found[name]} ({name}); keep one of them, or rename one")
    else:
        found[name] = file


def pair(
    images: Mapping[str, RawFile],
    masks: Mapping[str, RawFile],
    problems: Problems,
    rule: str = "a mask is paired with its image by name",
) -> list[str]:
    """The ids that have an image and a mask, in natural order. One without the other is a problem; `rule` tells what
    would make it a pair."""
    alone = sorted(images.keys() - masks.keys(), key=natural_key)
    orphans = sorted(masks.keys() - images.keys(), key=natural_key)
    mask = f"; a mask without an image is {masks[orphans[0]].name}" if orphans else ""
    for name in alone:
        problems.leave_out(images[name], f"{NO_MASK}; {rule}{mask}; add its mask, or move the image elsewhere")
    image = f"; an image without a mask is {images[alone[0]].name}" if alone else ""
    for name in orphans:
        problems.leave_out(masks[name], f"has no image; {rule}{image}; add its image, or move the mask away")
    return sorted(images.keys() & masks.keys(), key=natural_key)


def refuse_empty(source: Source, found: Iterable[object], name: str, forms: Mapping[str, str]) -> None:
    """UserError that tells the forms of a data set when nothing of it was found."""
    if not any(found):
        raise UserError(f"{source}: nothing of {name} here; it comes as {', or '.join(forms.values())}")


def check_numbers(
    source: Source,
    what: str,
    found: Mapping[str, RawFile],
    wanted: range,
    allow_partial: bool,
    problems: Problems,
) -> list[str]:
    """Compare numbered files with the numbers that the data set has. A number outside is a problem; missing ones are a
    problem too, or a warning (returned) when the user accepts it."""
    for name, file in found.items():
        if not name.isdigit() or int(name) not in wanted:
            problems.add(f"{file}: {what} are numbered {wanted[0]} to {wanted[-1]}; move other files elsewhere")
    missing = [str(number) for number in wanted if str(number) not in found]
    if not missing:
        return []
    names = ", ".join(missing[:_SHOWN]) + (", ..." if len(missing) > _SHOWN else "")
    text = f"{len(wanted) - len(missing)} of {len(wanted)} {what}; missing {names}"
    if allow_partial:
        return [f"partial source: {text}"]
    problems.add(f"{source}: {text}; complete the source, or accept it with --allow-partial")
    return []


def check_counts(
    source: Source,
    found: Mapping[str, int],
    expected: Mapping[str, int],
    allow_partial: bool,
    problems: Problems,
) -> list[str]:
    """Compare what was found with what the data set has. A difference is a problem, or a warning (returned) when
    the user accepts it: a data set that lacks files gives numbers that compare with nobody's."""
    wrong = [f"{found.get(what, 0)} {what}, {n} were expected" for what, n in expected.items() if found.get(what) != n]
    if allow_partial:
        return [f"partial source: {text}" for text in wrong]
    for text in wrong:
        problems.add(f"{source}: {text}; complete the source, or accept it with --allow-partial")
    return []


def unused_files(source: Source, known: Iterable[RawFile], ignored: str = "") -> list[str]:
    """A warning about image files that are none of `known` and whose path has no match of the pattern `ignored`."""
    used = {file.path for file in known}
    pattern = re.compile(ignored or r"(?!)", re.IGNORECASE)
    left = [file for file in source.files if file.suffix in EXTENSIONS and file.path not in used]
    left = [file for file in left if not pattern.search(file.path)]
    if not left:
        return []
    return [
        f"{len(left)} image files have names that this data set does not have, and were left out: first {left[0].path}"
    ]


def left_aside(source: Source) -> list[str]:
    """A note of what is neither an image nor a volume and was passed over, counted by kind."""
    others = Counter(file.suffix or "without an ending" for file in source.files if not _may_be_voxels(file))
    kinds = {"of operating systems": source.junk, "of other kinds": others}
    told = [f"{_number(own, what)} ({_counted(own)})" for what, own in kinds.items() if own]
    return [f"passed over: {', '.join(told)}"] if told else []


def _may_be_voxels(file: RawFile) -> bool:
    return file.suffix in EXTENSIONS or file.name.lower().endswith(_VOXELS)


def _number(counts: Counter[str], what: str) -> str:
    return f"{counts.total()} {'file' if counts.total() == 1 else 'files'} {what}"


def _counted(own: Counter[str]) -> str:
    shown = ", ".join(f"{n} {name}" for name, n in own.most_common(_SHOWN))
    return shown + (", ..." if len(own) > _SHOWN else "")


@dataclass
class Problems:
    """Everything that is wrong with a source. All of it is counted by kind; of each kind, the first few are shown.

    lenient: the user accepts that faulty samples are left out (`--allow-partial`); they are listed in `excluded`.
    """

    source: str
    lenient: bool = False
    found: list[str] = field(default_factory=list)
    excluded: list[dict[str, str]] = field(default_factory=list)

    def add(self, what: str) -> None:
        self.found.append(what)

    def leave_out(self, file: RawFile, why: str) -> None:
        """A file that makes no sample: left out when the user accepts that, else a problem."""
        if self.lenient:
            self.excluded.append({"id": file.path, "why": why})
        else:
            self.add(f"{file}: {why}")

    def raise_if_any(self) -> None:
        """One UserError: one line for one problem, else a line with the count and some for each kind."""
        different = list(dict.fromkeys(self.found))  # a damaged volume is one problem, not one a slice
        if len(different) == 1:
            raise UserError(different[0])
        if different:
            kinds = len({kind_of(text) for text in different})
            count = f"{len(different)} problems" + (f" of {kinds} kinds" if kinds > 1 else "")
            raise UserError("\n  ".join([f"{self.source}: {count}, nothing was written", *by_kind(different)]))


def by_kind(problems: Iterable[str]) -> list[str]:
    """The first three of each kind, the kinds in the order of their first, and how many more there are of each."""
    kinds: dict[str, list[str]] = {}
    for text in problems:
        kinds.setdefault(kind_of(text), []).append(text)
    lines = []
    for own in kinds.values():
        lines += own[:EXAMPLES]
        if len(own) > EXAMPLES:
            lines.append(f"... and {len(own) - EXAMPLES} more like this, {len(own)} in all")
    return lines


def kind_of(problem: str) -> str:
    """What a problem has in common with others of its kind: its words, without the file, numbers and other names."""
    words = re.split(r"[;,({\[]", problem.partition(": ")[2] or problem)[0]
    return re.sub(r"\S*[\d./]\S*|'[^']*'", "#", words).strip()
