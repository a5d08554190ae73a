"""A run's metrics for TensorBoard: event files in `tensorboard/` of its folder, made from its journal.

Every start of the run writes a file of its own. `state.json` says how long each one is and up to which byte of the
journal they go together. What a killed process wrote beyond that is cut off and written again from the journal; where
the journal itself has lost lines that they show (after a power cut), or was replaced, they are made anew from its
beginning. So each point is there once.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rwkvctl.base.files import write_json
from rwkvctl.runs import journal

FOLDER, STATE_NAME, EVENTS = "tensorboard", "state.json", "events.out.tfevents.*"
LOOK_BACK = 1 << 20
"""Bytes before an offset in which the last line before it is looked for."""


class EventFiles:
    """Appends a journal's metrics to the event files of its run."""

    def __init__(self, run_dir: Path):
        self.folder, self.journal = run_dir / FOLDER, run_dir / journal.JOURNAL_NAME
        self.files: dict[str, int] = {}
        self.offset = 0
        self._writer: Any = None
        self._path = Path()
        if not self._go_on():
            for path in [self.folder / STATE_NAME, *self.folder.glob(EVENTS)]:
                path.unlink(missing_ok=True)
            self.files, self.offset = {}, 0
        self.folder.mkdir(parents=True, exist_ok=True)

    def write(self, entries: Sequence[dict[str, Any]], offset: int) -> None:
        """Write the metrics among the entries, then note how far they go."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        for entry in entries:
            if entry["kind"] != "metrics":
                continue
            values = [Summary.Value(tag=key, simple_value=value) for key, value in entry["values"].items()]
            event = Event(wall_time=entry["t"] / 1000, step=entry["step"], summary=Summary(value=values))
            self._event_file().write_event(event)
        if self._writer is not None:
            self._writer.flush()
            with self._path.open("rb+") as file:
                os.fsync(file.fileno())
                self.files[self._path.name] = file.seek(0, os.SEEK_END)
        self.offset = offset
        state = {"files": self.files, "offset": offset, "line": line_before(self.journal, offset)}
        write_json(self.folder / STATE_NAME, state)

    def close(self) -> None:
        if self._writer is not None:
            try:
                self._writer.close()
            except OSError:  # of a full disk, where the library leaves its file open
                self._writer._py_recordio_writer._writer.close()

    def _event_file(self) -> Any:
        """The file of this process, which is made when there is something to write."""
        if self._writer is None:
            from tensorboardX.event_file_writer import EventsWriter

            self._writer = EventsWriter(str(self.folder / "events"), filename_suffix=f".{uuid.uuid4().hex[:8]}")
            self._path = Path(self._writer._file_name)
        return self._writer

    def _go_on(self) -> bool:
        """Take the files up where they are known to be those of the journal; False where they are not."""
        try:
            state = json.loads((self.folder / STATE_NAME).read_text())
            files, offset = dict(state["files"]), int(state["offset"])
            if state["line"] != line_before(self.journal, offset):
                return False
            for path in self.folder.glob(EVENTS):
                if path.name not in files:
                    path.unlink()
            for name, size in files.items():
                if (self.folder / name).stat().st_size < size:
                    return False
                os.truncate(self.folder / name, size)
        except (OSError, ValueError, KeyError, TypeError):
            return False
        self.files, self.offset = files, offset
        return True


def line_before(path: Path, offset: int) -> str:
    """What tells the journal's last line before a byte from any other: it has the time in it. Empty where the journal
    has no line that ends there."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        start = max(0, offset - LOOK_BACK)
        file.seek(start)
        content = file.read(offset - start)
        if len(content) == offset - start and content.endswith(b"\n"):
            return hashlib.sha256(content[content[:-1].rfind(b"\n") + 1 :]).hexdigest()
    return ""
