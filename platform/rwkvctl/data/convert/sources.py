"""What `--source` names: folders and archives, here or in an object store, as one list of raw files."""

from __future__ import annotations

import functools
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from natsort import natsort_keygen

from rwkvctl.base.errors import UserError
from rwkvctl.base.files import printable
from rwkvctl.data.convert import archives, stored_files
from rwkvctl.data.convert.raw_files import RawFile

__all__ = ["RawFile", "Source", "natural_key", "open_sources"]

_JUNK_FOLDERS = frozenset({"__MACOSX", ".git", ".ipynb_checkpoints", "@eaDir"})
_JUNK_FILES = frozenset({"thumbs.db", "desktop.ini", ".ds_store"})

_natural = natsort_keygen()


def natural_key(text: str) -> tuple[object, str]:
    """Sort key that puts 2 before 10; equal numbers written differently are ordered by their text."""
    return _natural(text), text


class Source:
    """Everything that was given as `--source`.

    top: the files as they lie on disk, archives among them unopened; files: the same with archives as folders, and
    folders: the paths of all folders, empty ones too (listed when they are first asked for). Orders are natural. links:
    the paths of links that are not followed; junk: how much of operating systems was passed over, by name.
    """

    def __init__(self, places: Sequence[Path | str], spool: Path):
        self.places = [place if stored_files.is_uri(place) else _existing(Path(place)) for place in places]
        self.paths = [place for place in self.places if isinstance(place, Path)]
        self._spool = spool
        self._empty_folders: set[str] = set()  # and all others on disk
        self._copied: dict[str, str] = {}
        self.links: list[str] = []
        self.junk = Counter[str]()
        self.top = [file for place in self.places for file in self._top_of(place)]

    def __str__(self) -> str:
        return printable(self.places[0])

    def _top_of(self, place: Path | str) -> Iterator[RawFile]:
        """Several sources are told apart by their names; one alone may be called anything."""
        name = place.name if isinstance(place, Path) else place.rstrip("/").rpartition("/")[2]
        if archives.is_archive(name) and not (isinstance(place, Path) and place.is_dir()):
            name = archives.without_extension(name)
        prefix = "" if len(self.places) == 1 else f"{name}/"
        if isinstance(place, Path):
            yield from self._on_disk(place, prefix)
            return
        found = [replace(file, path=prefix + file.path) for file in stored_files.listed(place, self._spool)]
        self.junk.update(filter(None, (_junk(file.inner) for file in found)))
        yield from sorted((file for file in found if not _junk(file.inner)), key=lambda file: natural_key(file.path))

    @functools.cached_property
    def files(self) -> list[RawFile]:
        plain = [file for file in self.top if not archives.is_archive(file.name)]
        found = {file.path: file for file in plain}
        inside: list[RawFile] = []
        for archive in (file for file in self.top if archives.is_archive(file.name)):
            for file in self._members(archive):
                twin = found.setdefault(file.path, file)
                if twin is file:
                    inside.append(file)
                elif twin.size != file.size or twin.kind != "file":  # an archive that lies beside its content is fine
                    raise UserError(f"{file}: appears twice, also as {twin}; keep one of them")
        return plain + sorted(inside, key=lambda file: natural_key(file.path)) if inside else plain

    @functools.cached_property
    def folders(self) -> set[str]:
        found: set[str] = set()
        for path in {file.parent for file in self.files} | self._empty_folders:
            while path and path not in found:
                found.add(path)
                path = path.rpartition("/")[0]
        return found

    def subfolders(self, parent: str) -> list[str]:
        """The paths of the folders right below `parent` ("" is the top), in natural order."""
        inside = f"{parent}/" if parent else ""
        found = (path for path in self.folders if path.startswith(inside) and "/" not in path[len(inside) :])
        return sorted(found, key=natural_key)

    def below(self, folder: str) -> list[RawFile]:
        """The files in and below a folder."""
        return [file for file in self.files if not folder or file.path.startswith(f"{folder}/")]

    def _on_disk(self, path: Path, prefix: str) -> Iterator[RawFile]:
        """Regular files in natural order, without the litter of operating systems. Links to folders are not
        followed, and links to files that leave the source are skipped: what is prepared is what lies in the source.
        """
        if path.is_file():
            yield _file(path.parent, path.name, path.name)
            return
        home = path.resolve()
        for folder, names, found in os.walk(path):
            relative = Path(folder).relative_to(path).as_posix()
            inside = "" if relative == "." else f"{relative}/"
            self.junk.update(filter(None, [*map(_junk_folder, names), *map(_junk_file, found)]))
            names[:] = sorted((n for n in names if not _junk_folder(n)), key=natural_key)
            self._empty_folders.update(printable(f"{prefix}{inside}{name}") for name in names)
            self.links += [printable(f"{prefix}{inside}{name}") for name in names if Path(folder, name).is_symlink()]
            for name in sorted((n for n in found if not _junk_file(n)), key=natural_key):
                place = Path(folder, name)
                if place.is_symlink() and not place.resolve().is_relative_to(home):
                    self.links.append(printable(f"{prefix}{inside}{name}"))
                    continue
                if place.is_file():
                    yield _file(path, f"{inside}{name}", f"{prefix}{inside}{name}")

    def _members(self, archive: RawFile) -> list[RawFile]:
        """The files of an archive. Its name becomes a folder, unless the archive was given alone as the source or has
        that folder inside."""
        found = archives.members(archive, self._spool)
        alone = len(self.places) == 1 and (
            self.paths[0].is_file() if self.paths else archives.is_archive(str(self.places[0]))
        )
        name = archives.without_extension(archive.name)
        folder = "" if alone else f"{archive.parent}/{name}/".lstrip("/")
        if folder and found and all(file.path.startswith(f"{name}/") for file in found):
            folder = folder.removesuffix(f"{name}/")
        self.junk.update(filter(None, (_junk(file.path) for file in found)))
        return [replace(file, path=folder + file.path) for file in found if not _junk(file.path)]

    def on_disk(self, file: RawFile) -> RawFile:
        """A file that libraries can open by its path, `data`: where it lies, or copied out of its archive."""
        if file.kind == "file":
            return file
        target = self._spool / f"copy-{len(self._copied)}"
        if file.path not in self._copied:
            with file.open() as stream, target.open("wb") as out:
                shutil.copyfileobj(stream, out, 1 << 20)
            self._copied[file.path] = str(target)
        return replace(file, kind="file", data=self._copied[file.path], offset=0)

    def shard(self, file: RawFile) -> list[RawFile]:
        """The members of a tar among `top` that no format treats as a folder: a shard that somebody else wrote."""
        return archives.members(file, self._spool)


@contextmanager
def open_sources(paths: Sequence[Path | str]) -> Iterator[Source]:
    """The `Source` of folders and archives; what had to be spooled is deleted at the end."""
    if not paths:
        raise UserError("--source: give the folder or archive that holds the raw files")
    with tempfile.TemporaryDirectory(prefix="rwkvctl-source-") as spool:
        yield Source(list(paths), Path(spool))


def _existing(source: Path) -> Path:
    source = source.expanduser().absolute()
    if not source.exists():
        raise UserError(f"--source {printable(source)}: does not exist")
    if not source.is_dir() and not (source.is_file() and archives.is_archive(source.name)):
        raise UserError(
            f"--source {printable(source)}: is not a folder and not an archive ({', '.join(archives.EXTENSIONS)})"
        )
    return source


def _junk_folder(name: str) -> str:
    """What a folder without data is counted as, "" for others."""
    return f"{name}/" if name in _JUNK_FOLDERS or name.startswith(".") else ""


def _junk_file(name: str) -> str:
    """The same of a file: `.DS_Store`, `._*`, `Thumbs.db`; other hidden files by their names."""
    if name.startswith("._"):
        return "._*"
    return name if name.startswith(".") or name.lower() in _JUNK_FILES else ""


def _junk(path: str) -> str:
    *folders, name = path.split("/")
    return next(filter(None, map(_junk_folder, folders)), "") or _junk_file(name)


def on_disk(path: Path) -> RawFile:
    """A single file that lies in no source."""
    return _file(path.parent, path.name, path.name)


def _file(home: Path, inner: str, path: str) -> RawFile:
    """Names that are not UTF-8 are read by `data` and called by what can be printed of them."""
    place = home / inner
    status = place.stat()
    shown = printable(path), status.st_size, printable(home), printable(inner)
    return RawFile(*shown, "file", status.st_mtime_ns, str(place))
