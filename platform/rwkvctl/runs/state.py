"""What a run is doing, from what is in its folder: nobody is asked, nothing is waited for."""

from __future__ import annotations

import json
import mmap
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rwkvctl.base import identity
from rwkvctl.base.errors import UserError
from rwkvctl.base.exit_codes import DONE, FAILED, INTERRUPTED, STOPPED
from rwkvctl.runs import folder as run_folder
from rwkvctl.runs import job_record
from rwkvctl.runs.lease import LEASE

QUEUED, RUNNING, FAILED_RUN, INTERRUPTED_RUN, STOPPED_RUN, DONE_RUN = STATES = (
    "queued",
    "running",
    "failed",
    "interrupted",
    "stopped",
    "done",
)
BY_CODE = {DONE: DONE_RUN, STOPPED: STOPPED_RUN, INTERRUPTED: INTERRUPTED_RUN}
CODES = {DONE_RUN: DONE, STOPPED_RUN: STOPPED, INTERRUPTED_RUN: INTERRUPTED, FAILED_RUN: FAILED}
"""What `run wait` ends with where the run itself has left no exit code."""
SILENT = 120.0
"""Seconds without a sign of life of a run on another machine, after which that is said."""
ENDS_WITHIN = 30.0
"""Seconds after its last entry in which the process of a run is expected to end."""


@dataclass
class RunState:
    """A row of `rwkvctl run list`; the names of the fields are those of its JSON."""

    run: str
    job: str
    state: str
    reason: str = ""
    step: int | None = None
    total: int | None = None
    metric: str | None = None
    value: float | None = None
    updated: float | None = None
    """When the run last wrote something, in seconds since 1970 by the clock of its machine."""
    where: str = "here"
    address: str | None = None
    submission_id: str | None = None
    exit_code: int | None = None
    path: str = ""

    @property
    def ended(self) -> bool:
        return self.state not in (QUEUED, RUNNING)

    def code(self) -> int:
        """The run's exit code, once it has ended."""
        return CODES[self.state] if self.exit_code is None else self.exit_code

    def fields(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class Told:
    """What a journal tells of its run: the newest of each kind of entry, and what came last."""

    started: bool = False
    end: dict[str, Any] | None = None
    updated: float | None = None
    figures: dict[str, Any] = field(default_factory=dict)


def of(folder: Path) -> RunState:
    """The state of the run in a folder."""
    try:
        job = run_folder.read_spec(folder).job
    except UserError as error:
        return RunState(folder.name, f"unreadable ({error})", FAILED_RUN, "its spec cannot be read", path=str(folder))
    record, told = job_record.read(folder), read_journal(folder / run_folder.JOURNAL)
    state, reason = judge(folder, record, told)
    process = record.get("process") or {}
    here = not process or identity.is_local(process)
    return RunState(
        run=folder.name,
        job=job,
        state=state,
        reason=reason,
        updated=told.updated or record.get("submitted"),
        where=record.get("address") or ("here" if here else process["host"]),
        address=record.get("address") if record.get("submission_id") else None,
        submission_id=record.get("submission_id"),
        exit_code=record.get("exit_code"),
        path=str(folder),
        **told.figures,
    )


def judge(folder: Path, record: dict[str, Any], told: Told) -> tuple[str, str]:
    """State and reason."""
    if "exit_code" in record:
        return BY_CODE.get(record["exit_code"], FAILED_RUN), record.get("reason", "")
    if record and "process" not in record:  # submitted, and has not begun
        return waiting(record)
    if told.end is not None:
        return (RUNNING, "ending") if is_ending(record, told.end) else by_end(told.end)
    if run_folder.result(folder) is not None:
        return DONE_RUN, ""
    if record or told.started:
        return under_way(folder, record)
    return INTERRUPTED_RUN, "never began"


def waiting(record: dict[str, Any]) -> tuple[str, str]:
    """A run that was submitted and has said nothing yet."""
    if record.get("submission_id") or record.get("parent") is None:
        return QUEUED, ""
    if identity.lives(record["parent"]) is False:
        return INTERRUPTED_RUN, f"process {record['parent']['pid']} ended before the run began"
    return QUEUED, "starting"


def is_ending(record: dict[str, Any], end: dict[str, Any]) -> bool:
    """Whether the process of a run that has told its end still sends what is left and says its last words."""
    process = record.get("process")
    return process is not None and time.time() - end["t"] / 1000 < ENDS_WITHIN and identity.lives(process) is True


def by_end(end: dict[str, Any]) -> tuple[str, str]:
    """The last entry of a journal."""
    reason = end.get("reason", "")
    if end["status"] == "FINISHED":
        return DONE_RUN, ""
    if end["status"] == "KILLED":
        return STOPPED_RUN if reason == STOPPED_RUN else INTERRUPTED_RUN, ""
    return FAILED_RUN, reason


def under_way(folder: Path, record: dict[str, Any]) -> tuple[str, str]:
    """A run that has begun and not ended: running, unless its process is gone."""
    holder = record.get("process") or lease_holder(folder)
    if holder is None:
        return INTERRUPTED_RUN, "no process holds it"
    alive = identity.lives(holder)
    if alive is False:
        return INTERRUPTED_RUN, f"process {holder['pid']} is gone"
    silent = seconds_since(folder / LEASE)
    if alive is None and silent is not None and silent > SILENT:
        return RUNNING, f"no sign of life for {silent / 60:.0f} min"
    return RUNNING, ""


def lease_holder(folder: Path) -> dict[str, Any] | None:
    try:
        holder = json.loads((folder / LEASE).read_text())
    except (OSError, ValueError):
        return None
    return holder if isinstance(holder, dict) and {"pid", "started", "machine"} <= holder.keys() else None


def seconds_since(path: Path) -> float | None:
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return None


# The journal, from its end: it can have millions of lines -------------------------------------------------------------


def read_journal(path: Path) -> Told:
    """What a journal tells; nothing where there is none. Damaged lines are passed over: they are no reason to hide a
    run."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return told_by(content)
    except (OSError, ValueError):  # absent, or empty
        return Told()


def told_by(content: mmap.mmap) -> Told:
    last = {kind: newest(content, f'"event": "{kind}"'.encode()) for kind in ("start", "end", "plan", "validation")} | {
        "metrics": newest(content, b'"train/loss":')
    }
    place = {kind: found[0] for kind, found in last.items() if found is not None}
    entry = {kind: found[1] for kind, found in last.items() if found is not None}
    final = newest(content, b'"kind": ')
    return Told(
        started="start" in place,
        end=entry.get("end") if place.get("end", -1) > place.get("start", -1) else None,
        updated=final[1]["t"] / 1000 if final else None,
        figures=figures(entry),
    )


def figures(entry: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Steps, and the newest validation score, or else the loss."""
    found: dict[str, Any] = {}
    if plan := entry.get("plan"):
        found |= {"step": plan.get("step"), "total": plan["epochs"] * plan["steps_per_epoch"]}
    if metrics := entry.get("metrics"):
        found |= {"step": metrics["step"], "metric": "train/loss", "value": float(metrics["values"]["train/loss"])}
    if validation := entry.get("validation"):
        scores = {key: value for key, value in validation.items() if isinstance(value, float)}
        for name, value in list(scores.items())[:1]:
            found |= {"metric": name if "/" in name else f"val/{name}", "value": value}
    return found


def newest(content: mmap.mmap, mark: bytes) -> tuple[int, dict[str, Any]] | None:
    """Where the last whole line with a mark begins, and its entry."""
    end = content.rfind(b"\n") + 1
    while (found := content.rfind(mark, 0, end)) >= 0:
        start = content.rfind(b"\n", 0, found) + 1
        try:
            entry = json.loads(content[start : content.find(b"\n", found)])
            if isinstance(entry, dict) and "t" in entry:
                return start, entry
        except ValueError:
            pass
        end = start
    return None
