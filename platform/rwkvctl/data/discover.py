"""Finding raw files: what counts as one, in which order, and how problems with them are reported."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from natsort import natsort_keygen

from rwkvctl.errors import UserError

_JUNK_FOLDERS = frozenset({"__MACOSX", ".git", ".ipynb_checkpoints", "@eaDir"})
_JUNK_FILES = frozenset({"thumbs.db", "desktop.ini", ".ds_store"})
_SHOWN = 5

_natural = natsort_keygen()


def natural_key(text: str) -> tuple[object, str]:
    """Sort key that puts 2 before 10; equal numbers written differently are ordered by their text."""
    return _natural(text), text


def walk(root: Path) -> Iterator[Path]:
    """All regular files below `root` in natural order, without the litter of operating systems.

    Links to folders are not followed, and links to files that leave `root` are skipped: what is prepared is what
    lies in the source.
    """
    home = root.resolve()
    for folder, names, found in os.walk(root):
        names[:] = sorted((n for n in names if n not in _JUNK_FOLDERS and not n.startswith(".")), key=natural_key)
        for name in sorted(found, key=natural_key):
            if name.startswith(".") or name.lower() in _JUNK_FILES:
                continue
            path = Path(folder, name)
            if path.is_symlink() and not path.resolve().is_relative_to(home):
                continue
            if path.is_file():
                yield path


def subfolders(root: Path) -> list[Path]:
    """The folders right below `root`, in natural order, without litter."""
    return sorted(
        (p for p in root.iterdir() if p.is_dir() and p.name not in _JUNK_FOLDERS and not p.name.startswith(".")),
        key=lambda p: natural_key(p.name),
    )


def find_root(source: Path, names: Iterable[str], what: str) -> Path:
    """The folder in or below `source` (wrappers of up to 3 levels) that has all the folders `names`.

    UserError when there is none, or more than one.
    """
    wanted = set(names)
    level = [source]
    for _ in range(4):
        found = [folder for folder in level if wanted <= {p.name.lower() for p in subfolders(folder)}]
        if len(found) > 1:
            raise UserError(f"{source}: {what} found twice, in {found[0]} and {found[1]}; give one as --source")
        if found:
            return found[0]
        level = [inner for folder in level for inner in subfolders(folder)][:1000]
    raise UserError(f"{source}: no {what} here; give the folder that holds it as --source")


def child(root: Path, name: str) -> Path:
    """The subfolder of `root` called `name`, whatever its case."""
    return next(p for p in subfolders(root) if p.name.lower() == name)


def slug(text: str) -> str:
    """`text` in the alphabet of sample keys, [a-z0-9_-]."""
    return re.sub(r"[^a-z0-9_-]+", "_", text.lower()).strip("_")


@dataclass
class Problems:
    """Everything that is wrong with a source: all of it is counted, the first few are named."""

    source: str
    found: list[str] = field(default_factory=list)

    def add(self, what: str) -> None:
        self.found.append(what)

    def raise_if_any(self) -> None:
        """One UserError: one line for one problem, else a line with the count and one for each of the first few."""
        if len(self.found) == 1:
            raise UserError(self.found[0])
        if self.found:
            more = len(self.found) - _SHOWN
            lines = [f"{self.source}: {len(self.found)} problems, nothing was written", *self.found[:_SHOWN]]
            raise UserError("\n  ".join(lines + ([f"... and {more} more"] if more > 0 else [])))
