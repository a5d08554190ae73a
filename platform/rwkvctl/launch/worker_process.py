"""What a worker's process does, from its rank to what became of it."""

from __future__ import annotations

import faulthandler
import importlib
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

from rwkvctl.base.errors import KINDS, JobFailedError, UserError, explain
from rwkvctl.config.specs.jobs import JOBS
from rwkvctl.launch import heartbeat
from rwkvctl.runs import mirror
from rwkvctl.runs.stop import Stopped

STACKS = signal.SIGUSR1
"""Has a worker write the stacks of all its threads to its log."""


def run(function: str, spec: dict[str, Any], run: str, beat: str) -> dict[str, str] | None:
    """Run `module:function` with a spec and the folder of a run; of one in a store, with this machine's copy.

    Returns None if it came to its end, or its error: `kind` is one of `KINDS` for what would fail again, Stopped (with
    the exit code as its message) where it ended before its last step on request, or the name of any other exception.
    """
    faulthandler.register(STACKS, all_threads=True)
    heartbeat.begin(Path(beat))
    module, name = function.split(":")
    try:
        getattr(importlib.import_module(module), name)(JOBS[spec["job"]].model_validate(spec), mirror.opened(run))
    except Stopped as stopped:
        return {"kind": "Stopped", "message": str(stopped.code)}
    except (UserError, JobFailedError) as error:
        kind = next(kind for kind in type(error).__mro__ if kind.__name__ in KINDS)
        return {"kind": kind.__name__, "message": str(error)}
    except BaseException as error:
        traceback.print_exc()
        sys.stderr.flush()
        said = explain(error) if isinstance(error, OSError) else " ".join(str(error).split())[:300]
        return {"kind": type(error).__name__, "message": said}
    return None
