"""What a user names as inputs, and the files and folders that are read of it: patterns, zips and folders of several
DICOM series, whole trees of them, and all that in object stores.

A volume of such a folder becomes a folder of links, one a slice, so that all that reads inputs reads a path. Messages
and `run.json` name it by where it is from.
"""

from __future__ import annotations

import glob
import json
import shutil
import unicodedata
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rwkvctl.base.errors import BadFile, JobFailedError, UserError, explain
from rwkvctl.base.files import printable, write_json
from rwkvctl.base.paths import as_text, from_text
from rwkvctl.data.convert import archives
from rwkvctl.data.convert.sources import natural_key, on_disk
from rwkvctl.data.images import dicom_files, itk
from rwkvctl.data.images.dicom_files import Series
from rwkvctl.models import predict_store

DONE = "inputs.json"
LONGEST_NAME = 120
DEEPEST = 8
"""Folders below one that is named: patients, studies and series, and what an export puts around them."""
DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError)
"""What a member of an archive raises that cannot be read."""


@dataclass
class Sources:
    """The paths that are read, in order."""

    paths: list[Path] = field(default_factory=list)
    shown: dict[str, str] = field(default_factory=dict)
    """By path, how messages name one that a user has not named."""
    skipped: list[str] = field(default_factory=list)
    """What was passed over, and why: a line each."""

    def say(self, text: str) -> str:
        """A message in the user's words."""
        for path in sorted(self.shown, key=len, reverse=True):
            text = text.replace(path, self.shown[path])
        return text

    @contextmanager
    def in_words(self) -> Iterator[None]:
        """Errors name what the user has named."""
        try:
            yield
        except (UserError, JobFailedError) as error:
            raise type(error)(self.say(str(error))) from error


def found(inputs: Sequence[str], folder: Path) -> Sources:
    """What is to be segmented of `inputs`, texts as `base.paths.as_text` makes them, or URIs of object stores.

    `folder` is a scratch folder: links and unpacked files are put there, once, however often this is called. It must
    be kept as long as the paths are read.

    UserError for a pattern without a match, an archive that is hostile or damaged, and where no series is a scan.
    """
    kept = folder / DONE
    if kept.is_file():
        fields = json.loads(kept.read_text())
        if fields["inputs"] == list(inputs):
            return Sources([from_text(path) for path in fields["paths"]], fields["shown"], fields["skipped"])
    shutil.rmtree(folder, ignore_errors=True)
    sources = Sources()
    for place, text in enumerate(inputs):
        scratch = folder / str(place)
        if predict_store.is_uri(text):
            copies = predict_store.fetched(text, scratch / "fetched")
            sources.shown |= {str(path): uri for uri, path in copies.items()}
            paths = list(copies.values())
        else:
            paths = matching(from_text(text))
        with sources.in_words():
            for number, path in enumerate(paths):
                _add(sources, path, scratch / str(number))
    if folder.exists():
        texts = [as_text(path) for path in sources.paths]
        fields = {"inputs": list(inputs), "paths": texts, "shown": sources.shown, "skipped": sources.skipped}
        write_json(kept, fields)
    return sources


def matching(path: Path) -> list[Path]:
    """A path itself, or what a pattern with `*`, `?`, `[...]`, `**` stands for. A file of that very name goes first."""
    text = str(path)
    if path.exists() or not glob.has_magic(text):
        return [path]
    found = glob.glob(text, recursive=True)  # noqa: PTH207 (a Path's own takes no absolute pattern)
    paths = sorted(map(Path, found), key=lambda each: natural_key(str(each)))
    if not paths:
        raise UserError(f"input {path}: no file or folder has a name of this pattern")
    return paths


def _add(sources: Sources, path: Path, folder: Path) -> None:
    try:
        if path.is_file() and path.suffix.lower() == ".zip":
            _add_series(sources, path, _unpacked(path, folder / "unpacked"), folder, "has no DICOM files in it")
        elif path.is_dir() and _is_dicom_tree(path):
            _add_series(sources, path, path, folder, "has no DICOM series in it")
        elif itk.is_dicom(path):
            _add_series(sources, path, path.parent, folder, "is no image of DICOM", [path])
        else:
            sources.paths.append(path)
    except OSError as error:
        raise UserError(f"input {path}: cannot be read ({explain(error)})") from None


def _is_dicom_tree(folder: Path) -> bool:
    """Whether a folder has DICOM files, itself or, where it has no other input, in a folder below."""
    if itk.is_series(folder):
        return True
    from rwkvctl.models.predict_inputs import is_input

    if any(is_input(path) for path in folder.iterdir()):
        return False
    return any(itk.is_series(each) for each in _folders_below(folder))


def _folders_below(folder: Path, depth: int = 1) -> Iterator[Path]:
    for each in sorted(folder.iterdir(), key=lambda path: natural_key(path.name)):
        if each.is_dir() and not each.is_symlink() and not each.name.startswith("."):
            yield each
            if depth < DEEPEST:
                yield from _folders_below(each, depth + 1)


def _add_series(
    sources: Sources, named: Path, tree: Path, folder: Path, otherwise: str, files: Sequence[Path] = ()
) -> None:
    """The volumes below `tree`, or of `files` in it, which a user knows as `named`."""
    files = files or [
        file for each in (tree, *_folders_below(tree)) for file in sorted(each.iterdir()) if file.is_file()
    ]
    series, skipped, images = dicom_files.grouped(files)
    if not series:
        raise UserError(f"input {named}: {'; '.join(skipped[:3]) or otherwise}")
    sources.skipped += [sources.say(f"{printable(named)}: {line}") for line in skipped]
    if (
        len(series) == 1
        and len(series[0].files) == images
        and tree == named
        and all(file.parent == tree for file in series[0].files)
    ):
        sources.paths.append(named)
        return
    own = named.stem if named.is_file() else named.name
    names = names_of(series, tree, own)
    for each, name in zip(series, names, strict=True):
        linked = folder / "series" / name
        linked.mkdir(parents=True)
        for place, file in enumerate(each.files):
            (linked / f"{place:05d}.dcm").symlink_to(file.absolute())
        sources.paths.append(linked)
        title = f": {each.title}" if len(series) > 1 else ""
        sources.shown[str(linked)] = sources.say(f"{printable(named)}{title}")


def names_of(series: Sequence[Series], tree: Path, own: str) -> list[str]:
    """A file name for each volume: that of its source where it is the only one; else with the folders below, the
    series' number and description, and its UID where these are not its alone."""
    if len(series) == 1:
        return [_safe(own)]
    first = [_safe("_".join([own, *_folders_of(each, tree), each.number, each.description])) for each in series]
    owners: dict[str, set[str]] = defaultdict(set)
    for name, each in zip(first, series, strict=True):
        owners[name.casefold()].add(each.uid)
    with_uid = [
        f"{name}_{each.uid}" if len(owners[name.casefold()]) > 1 else name
        for name, each in zip(first, series, strict=True)
    ]
    return [f"{name}_{each.phase:02d}" if each.phase else name for name, each in zip(with_uid, series, strict=True)]


def _folders_of(series: Series, tree: Path) -> tuple[str, ...]:
    parents = {file.parent for file in series.files}
    return parents.pop().relative_to(tree).parts if len(parents) == 1 else ()


def _safe(name: str) -> str:
    """As a file's name can be everywhere: letters and digits of any script, `-`, `.` and `_`."""
    plain = unicodedata.normalize("NFC", name)
    words = "".join(letter if letter.isalnum() or letter in "-." else " " for letter in plain).split()
    return "_".join(words).strip(".")[:LONGEST_NAME] or "series"


def _unpacked(archive: Path, folder: Path) -> Path:
    """The DICOM files of a zip, below `folder` in the folders that they have in there. UserError for a hostile one."""
    members = archives.members(on_disk(archive), folder)
    needed = sum(member.size for member in members)
    folder.mkdir(parents=True)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(f"input {archive}: unpacks to {needed >> 20} MB, and {folder} has {free >> 20} MB left")
    for member in members:
        try:
            with member.open() as stream:
                if stream.read(itk.DICOM_AT + len(itk.DICOM))[itk.DICOM_AT :] != itk.DICOM:
                    continue
            target = folder / member.path
            target.parent.mkdir(parents=True, exist_ok=True)
            with member.open() as stream, target.open("xb") as file:
                shutil.copyfileobj(stream, file)
        except FileExistsError:
            raise UserError(f"input {archive}: has two files {member.path}; unpack it and give the folder") from None
        except (BadFile, OSError, *DAMAGE) as error:
            raise UserError(f"input {archive}: {member.path} cannot be unpacked ({error}); download it again") from None
    return folder
