"""What every command and job ends with."""

from __future__ import annotations

DONE = 0
"""The work is done."""
FAILED = 1
"""The work could not be done; the line before it says why, and whether trying again helps."""
USER_ERROR = 2
"""Wrong input, told in one line that begins with `error:`; nothing was started, nothing is half-written."""
INTERRUPTED = 130
"""Ctrl-C, SIGTERM or a closed terminal; the line before it is the command that continues the run."""
