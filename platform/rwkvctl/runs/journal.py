"""The journal: everything that a run reports, on disk before anywhere else.

`journal.jsonl` in the run directory is appended to, one JSON object a line, by the one process that leads the run.
Tracking servers are fed from it (`rwkvctl.runs.sync`), so a server that is down, slow or absent costs the
training nothing. Lines look like this; `t` is the time in ms, which makes sending a line twice harmless:

    {"t": 1, "kind": "journal", "uid": "5e1f..."}                 the first line: which run this is
    {"t": 2, "kind": "params", "values": {"lr": 0.001}}
    {"t": 3, "kind": "tags", "values": {"git": "1f3c..."}}
    {"t": 4, "kind": "metrics", "step": 10, "values": {"train/loss": 0.7}}
    {"t": 5, "kind": "data", "dataset": "clinicdb", "split": "official", "part": "train", "samples": 490, ...}
    {"t": 5, "kind": "artifact", "path": "overlays/0.png", "artifact_path": "overlays"}
    {"t": 6, "kind": "event", "event": "end", "status": "FINISHED"}
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import threading
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from rwkvctl.base.errors import UserError
from rwkvctl.base.object_store import StoreError
from rwkvctl.runs import mirror
from rwkvctl.runs.data_inputs import DataInput
from rwkvctl.runs.lease import RunLease
from rwkvctl.runs.objects import Taken
from rwkvctl.runs.stored_journal import StoredJournal

JOURNAL_NAME = "journal.jsonl"
MEASURED = (
    "images_per_second",
    "seconds_per_step",
    "data_wait",
    "peak_memory_bytes",
    "percentage",
    "megabytes",
    "watts",
    "mfu",
)
"""How the names of metrics end that are the machine's, and differ from one time to the next."""


def say(run_dir: str | os.PathLike[str], text: str) -> None:
    """Add a line for whoever watches the run, while nobody else writes to its journal."""
    with Journal(Path(run_dir) / JOURNAL_NAME) as journal:
        journal.event("message", text=text)


class Journal:
    """Append to a run's journal; opened again after a crash, it goes on where the last whole line ends.

    A metric is written once for each (key, step), the first value staying: a resumed run that repeats steps adds
    nothing. Parameters keep their first value too; a tag takes its newest.

    Args:
        path: the file, usually `<run directory>/journal.jsonl`; artifacts are named relative to its directory.
        lease: where given, writing raises LeaseLost once another process has taken the run directory.
        send: of a run in an object store: send it there when it is closed, if the store takes it.
    """

    def __init__(self, path: str | os.PathLike[str], *, lease: RunLease | None = None, send: bool = True):
        self.path = Path(path)
        self.run_dir = self.path.parent.absolute()
        self._lease = lease
        self._lock = threading.Lock()
        self._steps: dict[str, set[int]] = {}
        self._params: dict[str, Any] = {}
        self._tags: dict[str, str] = {}
        self._data: set[str] = set()
        self.run_dir.mkdir(parents=True, exist_ok=True)
        cut_torn_line(self.path)
        in_store = mirror.of(self.run_dir)
        self._stored = None if in_store is None or not send else StoredJournal(in_store)
        if self._stored is not None:
            self._stored.pull()
        self.uid = self._replay()
        self._file = self.path.open("ab", buffering=0)
        if not self.uid:
            self.uid = uuid.uuid4().hex
            self._write("journal", uid=self.uid)
            self.flush()

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Log numbers at a step (of the optimiser, not of an epoch); NaN and infinities are kept."""
        step = int(step)
        new = {key: float(value) for key, value in values.items() if step not in self._steps.get(key, ())}
        if new:
            self._write("metrics", step=step, values={key: _encode(value) for key, value in new.items()})
            self._remember_metrics(new, step)

    def params(self, values: Mapping[str, Any]) -> None:
        """Log settings that hold for the whole run. A later, different value is noted as an event, not taken."""
        plain = {key: value if isinstance(value, int | float | bool) else str(value) for key, value in values.items()}
        changed = {k: v for k, v in plain.items() if k in self._params and str(self._params[k]) != str(v)}
        new = {k: v for k, v in plain.items() if k not in self._params}
        if new:
            self._write("params", values={k: _encode(v) if isinstance(v, float) else v for k, v in new.items()})
            self._params |= new
        for key, value in changed.items():
            self.event("param_changed", key=key, was=str(self._params[key]), now=str(value))

    def param(self, key: str) -> Any:
        """A setting that was logged, by this start of the run or by an earlier one; None if it was not."""
        return self._params.get(key)

    def tagged(self, prefix: str) -> int:
        """How many labels begin so."""
        return sum(key.startswith(prefix) for key in self._tags)

    def tags(self, values: Mapping[str, str]) -> None:
        """Log labels of the run."""
        new = {key: str(value) for key, value in values.items() if self._tags.get(key) != str(value)}
        if new:
            self._write("tags", values=new)
            self._tags |= new

    def artifact(self, path: str | os.PathLike[str], artifact_path: str = "") -> None:
        """Name a file, or a folder with all that is in it, to be kept with the run under `artifact_path`.

        It is read when it is sent, so it must stay; naming it again sends it again.
        """
        full = Path(path).absolute()
        inside = full.is_relative_to(self.run_dir)
        named = full.relative_to(self.run_dir) if inside else full
        self._write("artifact", path=named.as_posix(), artifact_path=artifact_path)

    def data(self, data: DataInput) -> None:
        """Name data that the run reads, once for each part."""
        if data.name not in self._data:
            self._data.add(data.name)
            self._write("data", **data.as_fields())

    def event(self, event: str, **fields: Any) -> None:
        """Note what happened: `start`, `epoch`, `checkpoint`, `message`, ... and `end`, whose `status` is the run's
        (`FINISHED`, `FAILED` or `KILLED`). A `start` after an `end` sets the run going again.
        """
        self._write("event", event=event, **fields)

    def flush(self) -> None:
        """Return when everything written is on the disk."""
        if self._lease is not None:
            self._lease.check()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Flush and close; a lease that was lost is no reason to fail here."""
        if not self._file.closed:
            os.fsync(self._file.fileno())
            self._file.close()
            if self._stored is not None:
                with contextlib.suppress(StoreError, Taken):  # the run's end sends it, or says why not
                    self._stored.push()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _write(self, kind: str, **fields: Any) -> None:
        entry = {"t": time.time_ns() // 1_000_000, "kind": kind, **fields}
        line = (json.dumps(entry, ensure_ascii=False, allow_nan=False, default=str) + "\n").encode()
        with self._lock:
            if self._lease is not None:
                self._lease.check(max_age=1.0)
            end = self._file.seek(0, os.SEEK_END)
            try:
                written = self._file.write(line)
                if written != len(line):
                    raise OSError(f"{self.path}: only {written} of {len(line)} bytes were written: is the disk full?")
            except OSError:
                os.truncate(self.path, end)  # Half a line must not run into the next one.
                raise

    def _replay(self) -> str:
        """Take in what earlier processes wrote; returns the run's uid, empty for a new journal."""
        if not self.path.exists():
            return ""
        entries, _ = read(self.path)
        for entry in entries:
            if entry["kind"] == "metrics":
                self._remember_metrics(entry["values"], entry["step"])
            elif entry["kind"] == "params":
                self._params |= entry["values"]
            elif entry["kind"] == "tags":
                self._tags |= entry["values"]
            elif entry["kind"] == "data":
                self._data.add(data_of(entry).name)
        return run_uid(self.path) if entries else ""

    def _remember_metrics(self, values: Mapping[str, float], step: int) -> None:
        for key in values:
            self._steps.setdefault(key, set()).add(step)


def read(path: str | os.PathLike[str], offset: int = 0, limit: int | None = None) -> tuple[list[dict[str, Any]], int]:
    """The entries of the whole lines from byte `offset` on, at most `limit`, and the offset behind the last of them.

    A last line without its end is left for the next call: someone may be writing it. Metric values come back as floats.
    """
    entries: list[dict[str, Any]] = []
    with Path(path).open("rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n") or (limit is not None and len(entries) >= limit):
                break
            entries.append(_decode(line, path, offset))
            offset += len(line)
    return entries, offset


def data_of(entry: Mapping[str, Any]) -> DataInput:
    """The data that an entry names."""
    return DataInput(**{key: value for key, value in entry.items() if key not in ("t", "kind")})


def run_uid(path: str | os.PathLike[str]) -> str:
    """The run that a journal belongs to, from its first line."""
    entries, _ = read(path, limit=1)
    if not entries or entries[0]["kind"] != "journal":
        raise UserError(f"{path}: the first line does not name a run: this is not a journal of rwkvctl")
    return entries[0]["uid"]


def _decode(line: bytes, path: str | os.PathLike[str], offset: int) -> dict[str, Any]:
    try:
        entry = json.loads(line)
        if entry["kind"] == "metrics":
            entry["values"] = {key: float(value) for key, value in entry["values"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: the line at byte {offset} is damaged ({error}): restore the file or delete that line"
        ) from error
    return entry


def _encode(value: float) -> float | str:
    """Strict JSON has no NaN and no infinity; `float` reads these strings back."""
    return value if math.isfinite(value) else str(value)


def cut_torn_line(path: Path) -> None:
    """Remove what a crash left of a last line: everything behind the last line end."""
    if not path.exists():
        return
    with path.open("r+b") as file:
        size = keep = file.seek(0, os.SEEK_END)
        while keep:
            start = max(0, keep - 65536)
            file.seek(start)
            found = file.read(keep - start).rfind(b"\n")
            keep = start + found + 1 if found >= 0 else start
            if found >= 0:
                break
        if keep != size:
            file.truncate(keep)
