"""Runs in an object store: `s3://bucket/prefix/<name>` is the run, a folder of the cache is where processes work on it.

Every process goes on using a folder. `.mirror.json` in it names the store's run, and each file's object (its ETag)
with the file's size and time when both were the same: what differs since then has been changed on one of the sides.
The functions here do nothing to a run that is kept in a folder of its own.

<cache>/runs/<hash of s3://bucket/prefix>/<name>/   the folder
s3://bucket/prefix/<name>/   the same files; the journal as segments (`stored_journal`), the lease (`lease`)

Two things have an order, for a process may die between any two requests: a checkpoint's `state.json` comes after its
other files and before the pointers (`stored_checkpoints`), and a file before the line of the journal that names it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from rwkvctl.base.errors import NoSuchRunError, UserError
from rwkvctl.base.files import locked, write_bytes, write_json
from rwkvctl.base.uris import has_secret
from rwkvctl.config import settings
from rwkvctl.runs.objects import Entry, Objects, Taken

RECORD = ".mirror.json"
APART = {"checkpoints", "journal", "journal.jsonl", "lease.json", "trials", "ray", "tensorboard", "wandb"}
"""Names in a run's folder that are brought to the store in another way, or not at all."""
OF_THIS_MACHINE = {"mlflow.json", "job.json", "output.log", "stop.json"}
"""About this start of the run, or how far its driver has come; none of it is worth keeping once another one began."""
PROBE = ".rwkvctl-probe"


def is_uri(place: str) -> bool:
    """Whether runs may be kept there as in an object store; what has a secret in it is nobody's address."""
    return place.startswith("s3://") and not has_secret(place)


def working_folder(uri: str) -> Path:
    """Where a run of a store is worked on here. A trial's folder is in its sweep's, as in the store."""
    storage, _, name = uri.rstrip("/").rpartition("/")
    if storage.endswith("/trials"):
        return working_folder(storage.removesuffix("/trials")) / "trials" / name
    digest = hashlib.sha256(storage.encode()).hexdigest()[:16]
    return Path(settings.load().cache_dir) / "runs" / digest / name


def of(run_dir: Path) -> Mirror | None:
    """What keeps a run's folder and the store alike; None for a run that is kept in this folder alone."""
    try:
        return Mirror(run_dir.absolute(), json.loads((run_dir / RECORD).read_text())["uri"])
    except (FileNotFoundError, NotADirectoryError):
        return None


def address(run_dir: Path) -> str:
    """What names a run on every machine: its URI, or its path."""
    mirror = of(run_dir)
    return str(run_dir) if mirror is None else mirror.uri


def place(address: str) -> Path:
    """The folder of a run of that address, here, whether there is such a run or not."""
    return Mirror.at(address).folder if is_uri(address) else Path(address)


def opened(place: str) -> Path:
    """The folder of a run of that address, here; of a store's run with what it says about itself (spec, result).

    NoSuchRunError where the store has no such run.
    """
    if not is_uri(place):
        return Path(place)
    mirror = Mirror.at(place)
    mirror.look()
    if not (mirror.folder / "spec.yaml").exists():
        raise NoSuchRunError(f"{place}: not a run (spec.yaml is missing)")
    return mirror.folder


def look(run_dir: Path) -> None:
    """Fetch what other machines have changed of what a run says about itself: spec, result, requests to it."""
    if (mirror := of(run_dir)) is not None:
        mirror.look()


def pull(run_dir: Path, below: str = "") -> None:
    """Fetch what other machines have written, in one of the run's folders (`model/`) or all; checkpoints and journal
    are not among it."""
    if (mirror := of(run_dir)) is not None:
        mirror.pull(below)


def push(run_dir: Path) -> None:
    """Send what was written here: all but checkpoints and journal."""
    if (mirror := of(run_dir)) is not None:
        mirror.push()


def send(run_dir: Path, name: str) -> None:
    """Send one file."""
    if (mirror := of(run_dir)) is not None:
        mirror.send([name])


def remove(run_dir: Path, name: str) -> None:
    """Delete a file, here and in the store."""
    (run_dir / name).unlink(missing_ok=True)
    if (mirror := of(run_dir)) is not None:
        mirror.delete([name])


def discard(run_dir: Path) -> None:
    """Delete the store's run."""
    if (mirror := of(run_dir)) is not None:
        mirror.discard()


def begin(uri: str, name: str, content: bytes) -> Path:
    """A new run in a store, with one file; returns its folder here. Raises Taken where the store has such a run."""
    etag = Objects(uri).write(name, content, IfNoneMatch="*")
    mirror = Mirror.at(uri)
    if any(not path.name.startswith(".") for path in mirror.folder.iterdir()):  # of a run that the store lost
        mirror.set_aside()
    write_bytes(mirror.folder / name, content)
    mirror.remember({name: [etag, *_stamp(mirror.folder / name)]})
    return mirror.folder


def probe(storage: str) -> None:
    """UserError, in one line, where runs cannot be kept in a store: it does not answer, refuses, or does not know
    writes on a condition, by which two trainers of one run are told apart. Leaves nothing behind."""
    objects, name = Objects(storage), f"{PROBE}-{hashlib.sha256(str(time.time_ns()).encode()).hexdigest()[:12]}"
    objects.write(name, b"", IfNoneMatch="*")
    try:
        objects.write(name, b"", IfNoneMatch="*")
    except Taken:
        return
    finally:
        objects.delete([name])
    raise UserError(
        f"storage {storage}: the store ignores conditional writes (If-None-Match), which keep two trainers of a run "
        "apart; use a newer version of it, or a folder"
    )


class Mirror:
    """A run's folder and the store's run.

    Every method raises StoreError where the store refuses, fails or does not answer; what was done until then stays.
    """

    def __init__(self, folder: Path, uri: str):
        self.folder, self.uri = folder, uri
        self.objects = Objects(uri)

    @classmethod
    def at(cls, uri: str) -> Mirror:
        """With the folder that belongs to a URI, which is made."""
        uri = uri.rstrip("/")
        folder = working_folder(uri)
        if not (folder / RECORD).exists():
            with locked(folder / RECORD):
                if not (folder / RECORD).exists():
                    write_json(folder / RECORD, {"uri": uri, "files": {}})
        return cls(folder, uri)

    # From here to the store ------------------------------------------------------------------------------------------

    def push(self) -> int:
        """Send all files that were changed here, but those that are kept apart; returns their bytes."""
        return self.send(sorted(name for name in self._files() if name.partition("/")[0] not in APART))

    def send(self, names: Iterable[str]) -> int:
        """Send the files that were changed here since they were the store's; returns their bytes."""
        known, sent, new = self.known(), 0, {}
        try:
            for name in names:
                path = self.folder / name
                with contextlib.suppress(FileNotFoundError):  # which is replaced, and sent the next time
                    here = _stamp(path)
                    if known.get(name, ["", 0, 0])[1:] != here:
                        new[name] = [self.objects.send(path, name), *here]
                        sent += here[0]
        finally:
            self.remember(new)
        return sent

    def delete(self, names: Iterable[str]) -> None:
        """Delete objects."""
        names = list(names)
        self.objects.delete(names)
        self.remember({}, names)

    def discard(self, unless: str | None = None) -> bool:
        """Delete the store's run, unless something lies below that key; says whether it did."""
        found = self.objects.entries()
        if unless is not None and any(name.startswith(unless) for name in found):
            return False
        self.delete(found)
        return True

    # From the store to here ------------------------------------------------------------------------------------------

    def look(self) -> float:
        """Fetch what the run says about itself: small files directly in its folder. Returns when one was last written,
        by the store's clock."""
        return self._take(lambda name: "/" not in name and name.endswith((".json", ".yaml")), deep=False)

    def pull(self, below: str = "") -> None:
        """Fetch all files but those that are kept apart."""
        self._take(lambda name: name.startswith(below), below)

    def _take(self, wanted: Callable[[str], bool], below: str = "", *, deep: bool = True) -> float:
        """Fetch what is not here, or here as it once was, and delete here what the store has no more. What was changed
        here stays."""
        known = self.known()  # before the list: what another process sends now must not look deleted
        found = self.objects.entries(below, deep=deep)
        with locked(self.folder / "pull"):
            for name, entry in found.items():
                if wanted(name) and _shared(name) and self.fetch_wanted(name, entry, known):
                    self.fetch(name, entry)
        gone = [name for name in known.keys() - found.keys() if wanted(name) and _shared(name)]
        for name in gone:
            if self.unchanged(name, known):
                (self.folder / name).unlink(missing_ok=True)
        self.remember({}, gone)
        return max((entry.modified for entry in found.values()), default=0.0)

    def fetch_wanted(self, name: str, entry: Entry, known: dict[str, list[Any]]) -> bool:
        """Whether the file is not here, or here as the store's object was before."""
        if not (self.folder / name).exists():
            return True
        return self.unchanged(name, known) and known[name][0] != entry.etag

    def fetch(self, name: str, entry: Entry) -> None:
        """Fetch a file."""
        self.objects.fetch(name, self.folder / name)
        self.remember({name: [entry.etag, *_stamp(self.folder / name)]})

    # What is alike ---------------------------------------------------------------------------------------------------

    def known(self) -> dict[str, list[Any]]:
        """[ETag, size, time] of every file that has been the same on both sides."""
        files: dict[str, list[Any]] = json.loads((self.folder / RECORD).read_text())["files"]
        return files

    def remember(self, files: dict[str, list[Any]], gone: Iterable[str] = ()) -> None:
        """Note files as alike, or as no longer known of."""
        gone = list(gone)
        if not files and not gone:
            return
        with locked(self.folder / RECORD):
            known = {name: entry for name, entry in self.known().items() if name not in gone}
            write_json(self.folder / RECORD, {"uri": self.uri, "files": known | files})

    def unchanged(self, name: str, known: dict[str, list[Any]]) -> bool:
        """Whether the file is here as it was when both sides were alike."""
        try:
            return name in known and known[name][1:] == _stamp(self.folder / name)
        except FileNotFoundError:
            return False

    def changed_here(self) -> list[str]:
        """Files that the store does not have as they are here."""
        known = self.known()
        own = (name for name in self._files() if _shared(name) or name.startswith("checkpoints/"))
        return sorted(name for name in own if name not in OF_THIS_MACHINE and not self.unchanged(name, known))

    def recognise(self) -> None:
        """Note as alike what was sent by a process that died before it noted it: an ETag is a small file's MD5."""
        missing = set(self.changed_here())
        if not missing:
            return
        same = {}
        for name, entry in self.objects.entries().items():
            path = self.folder / name
            if name in missing and path.stat().st_size == entry.size:
                with path.open("rb") as file:
                    digest = hashlib.file_digest(file, partial(hashlib.md5, usedforsecurity=False)).hexdigest()
                if entry.etag.strip('"') == digest:
                    same[name] = [entry.etag, *_stamp(path)]
        self.remember(same)

    def set_aside(self) -> Path:
        """Take this folder out of the way, with all that the store does not have, and begin an empty one."""
        aside = self.folder.with_name(f"{self.folder.name}.aside-{time.strftime('%Y%m%d-%H%M%S')}")
        self.folder.rename(aside)
        (aside / RECORD).unlink()
        write_json(self.folder / RECORD, {"uri": self.uri, "files": {}})
        return aside

    def _files(self) -> list[str]:
        """All files by their path from the folder; temporary ones and our own (`.name`) are not."""
        found = (path.relative_to(self.folder) for path in self.folder.rglob("*") if path.is_file())
        return [path.as_posix() for path in found if not any(part.startswith(".") for part in path.parts)]


def _shared(name: str) -> bool:
    """Whether a file is brought from one side to the other by `push` and `pull`."""
    return name.partition("/")[0] not in APART and not name.startswith(".")


def _stamp(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]
