"""What every command and job ends with, here and on a cluster: a script can tell what to do next."""

from __future__ import annotations

DONE = 0
"""The work is done."""
FAILED = 1
"""The work could not be done, and would fail again; the line before it says why."""
USER_ERROR = 2
"""Wrong input, told in one line that begins with `error:`; nothing was started, nothing is half-written."""
STOPPED = 3
"""Somebody else stopped the run; it can be resumed."""
NO_SUCH_RUN = 4
"""There is no run of that name, path or id."""
TRANSIENT = 75
"""A machine, a node or a server is gone or did not answer in time: the same command can succeed later, and resumes what
was begun. A scheduler may retry on this code (BSD's EX_TEMPFAIL)."""
INTERRUPTED = 130
"""Ctrl-C, SIGTERM or a closed terminal; the line before it is the command that continues the run."""
