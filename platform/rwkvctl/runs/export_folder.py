"""A folder that runs are exported to.

DIR/
  runs.parquet, metrics.parquet, artifacts/<run id>/..., models/<logged model's id>/...
  manifest.json   every one of these files with its SHA-256 and size
  .export/        what the next export goes on from: a journal of what is here, whole, and the points of each run

A file comes under its name whole, and only then into the journal, so an export that was killed goes on where it was.
The manifest is deleted before anything changes and written last: a folder that has one is complete.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import rwkvctl
from rwkvctl.base.errors import UNUSABLE, UserError, explain
from rwkvctl.base.files import fsync_directory, locked_or_refused, sha256_file, write_bytes
from rwkvctl.runs.journal import cut_torn_line

STATE, MANIFEST, JOURNAL = ".export", "manifest.json", "journal.jsonl"
RUNS, METRICS = "runs.parquet", "metrics.parquet"


@dataclass(frozen=True)
class Kept:
    """A file that is here, whole."""

    size: int
    sha256: str
    modified: int
    """ns since 1970, on this disk: while it and the size are the same, the content is taken to be."""
    stamp: str
    """What it was made from; empty for what must be fetched again."""


@contextmanager
def opened(out: Path) -> Iterator[ExportFolder]:
    """The folder, which is made if it is not there, for one process at a time.

    UserError for a folder with something else in it, and for one that another export is writing to.
    """
    state = out / STATE
    try:
        if out.is_dir() and not state.is_dir() and any(out.iterdir()):
            raise UserError(f"--out {out}: has other files in it; give a new folder, or one with an earlier export")
        state.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno in UNUSABLE:
            raise UserError(f"--out {out}: cannot be written ({explain(error)}); give another folder") from None
        raise
    with locked_or_refused(state / "export") as ours:
        if not ours:
            raise UserError(f"--out {out}: another export is writing to it; wait for it, or give another folder")
        folder = ExportFolder(out)
        try:
            yield folder
        finally:
            folder.close()


class ExportFolder:
    """What is in the folder; `opened` makes it. Its methods may be called by several threads."""

    def __init__(self, out: Path):
        self.out = out
        self.files: dict[str, Kept] = {}
        """By path below the folder, the points of single runs included."""
        self.rows: dict[str, dict[str, Any]] = {}
        """What runs.parquet says, by run id."""
        self.fetched: list[int] = []
        """The sizes of the files that were put here by this process."""
        self._lock = threading.Lock()
        shutil.rmtree(out / STATE / "incoming", ignore_errors=True)
        (out / STATE / "incoming").mkdir()
        self._read()
        self._file = (out / STATE / JOURNAL).open("ab", buffering=0)

    def close(self) -> None:
        self._file.close()

    def whole(self, name: str, stamp: str, size: int | None = None) -> bool:
        """Whether a file is here that was made from the same, of that size where one is known, and undamaged."""
        kept, path = self.files.get(name), self.out / name
        if kept is None or not stamp or kept.stamp != stamp or size not in (None, kept.size):
            return False
        try:
            status = path.stat()
            if status.st_size != kept.size:
                return False
            return status.st_mtime_ns == kept.modified or sha256_file(path) == kept.sha256
        except OSError:
            return False

    @contextmanager
    def incoming(self) -> Iterator[Path]:
        """A path for what is on its way; `put` gives it its name."""
        path = self.out / STATE / "incoming" / uuid.uuid4().hex
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)

    def put(self, path: Path, name: str, stamp: str) -> None:
        """Give a file that has come its name."""
        with path.open("rb+") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        target = self.out / name
        with self._lock:
            self._begin_change()
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)
            fsync_directory(target.parent)
            status = target.stat()
            self.files[name] = Kept(status.st_size, digest, status.st_mtime_ns, stamp)
            self.fetched.append(status.st_size)
            self._note({"file": name, **asdict(self.files[name])})

    def record(self, row: dict[str, Any]) -> None:
        """Keep what runs.parquet is to say of a run, all of whose files are here."""
        with self._lock:
            if self.rows.get(row["run_id"]) != row:
                self._begin_change()
                self.rows[row["run_id"]] = row
                self._note({"run": row})

    def ordered_rows(self) -> list[dict[str, Any]]:
        """The rows of runs.parquet, the oldest run first."""
        return sorted(self.rows.values(), key=lambda row: (row["start"] or 0, row["run_id"]))

    def complete(self) -> None:
        """Write the manifest, unless it is there as it has to be, and shorten the journal."""
        files = {
            name: {"sha256": kept.sha256, "size": kept.size}
            for name, kept in sorted(self.files.items())
            if not name.startswith(f"{STATE}/")
        }
        running = sorted(run for run, row in self.rows.items() if not row["final"])
        content = {
            "schema": "rwkvctl-export/1",
            "rwkvctl": rwkvctl.__version__,
            "runs": len(self.rows),
            "running": running,
            "files": files,
        }
        text = (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()
        manifest = self.out / MANIFEST
        if manifest.exists() and manifest.read_bytes() == text:
            return
        lines = [{"file": name, **asdict(kept)} for name, kept in self.files.items()]
        lines += [{"run": row} for row in self.rows.values()]
        write_bytes(self.out / STATE / JOURNAL, "".join(json.dumps(line) + "\n" for line in lines).encode())
        write_bytes(manifest, text)

    def _begin_change(self) -> None:
        (self.out / MANIFEST).unlink(missing_ok=True)

    def _note(self, entry: dict[str, Any]) -> None:
        self._file.write((json.dumps(entry) + "\n").encode())

    def _read(self) -> None:
        path = self.out / STATE / JOURNAL
        cut_torn_line(path)
        if not path.exists():
            return
        for line in path.read_bytes().splitlines():
            try:
                entry = json.loads(line)
                if "run" in entry:
                    self.rows[entry["run"]["run_id"]] = entry["run"]
                else:
                    name = entry.pop("file")
                    self.files[name] = Kept(**entry)
            except (ValueError, KeyError, TypeError):  # a damaged line: what it told of is fetched again
                continue
