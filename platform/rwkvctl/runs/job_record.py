"""`job.json` in a run's folder: how the run was last started, where its process is, and what it ended with.

{"submitted": 1738300000.0, "address": "http://head:8265", "submission_id": "finetune-...",    by who started it
 "process": {"host": "node1", "machine": "...", "pid": 4711, "started": "..."},                  by the job itself
 "exit_code": 1, "reason": "step 7: the loss is not finite"}                                     when it has ended
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from rwkvctl.base import identity
from rwkvctl.base.errors import JobFailedError, UserError
from rwkvctl.base.files import write_json
from rwkvctl.base.uris import mask
from rwkvctl.runs import mirror

RECORD = "job.json"
OUTPUT = "output.log"
"""In a run's folder: what a detached job prints."""
SPEC_VARIABLE = "RWKVCTL_SPEC"
"""The variable with the spec of a job that was sent to a cluster, in base64: Ray expands others."""
SUBMISSION = "RWKVCTL_SUBMISSION"
"""The variable that tells a job which submission it is."""


def read(run_dir: str | os.PathLike[str]) -> dict[str, Any]:
    """What is recorded; empty for a run that was never submitted, or where it cannot be read."""
    try:
        found = json.loads((Path(run_dir) / RECORD).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def submitted(run_dir: str | os.PathLike[str], **fields: Any) -> None:
    """A new start of the run: nothing is kept of the one before."""
    write_json(Path(run_dir) / RECORD, {"submitted": time.time(), **fields})
    mirror.send(Path(run_dir), RECORD)


def note(run_dir: str | os.PathLike[str], **fields: Any) -> None:
    """Add to the record of the present start."""
    write_json(Path(run_dir) / RECORD, read(run_dir) | fields)


def begun(run_dir: str | os.PathLike[str]) -> None:
    """Called by the job's own process, once the run is its own."""
    record, submission = read(run_dir), os.environ.get(SUBMISSION)
    if "process" in record or record.get("submission_id") != submission:  # of an earlier start
        record = {"submitted": time.time()} | ({"submission_id": submission} if submission else {})
    write_json(Path(run_dir) / RECORD, record | {"process": identity.of_process()})


def ended(run_dir: str | os.PathLike[str], exit_code: int, reason: str) -> None:
    """Called by the job's own process; nothing is written where the run is another's."""
    record = read(run_dir)
    if record and record.get("process", identity.of_process()) == identity.of_process():
        write_json(Path(run_dir) / RECORD, record | {"exit_code": exit_code, "reason": reason})


def reason_of(error: BaseException) -> str:
    """An error as it is kept with a run: its first line, without secrets; with its kind where it is not ours."""
    text = mask(next(iter(str(error).splitlines()), ""))[:300]
    return text if isinstance(error, UserError | JobFailedError) else f"{type(error).__name__}: {text}".rstrip(": ")
