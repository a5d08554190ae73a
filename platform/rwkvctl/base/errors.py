"""Errors that reach the user as one line."""

from __future__ import annotations

import errno
import os

from rwkvctl.base.exit_codes import FAILED, NO_SUCH_RUN, TRANSIENT, USER_ERROR


class UserError(ValueError):
    """Wrong input: an argument, a file, a spec, a data set.

    The message is one line for the user: what is wrong, where (file, key or field), what to do about it.
    The command line prints it without a traceback and exits with code 2.
    """

    exit_code = USER_ERROR


class NoSuchRunError(UserError):
    """A run that was named does not exist. Exit code 4."""

    exit_code = NO_SUCH_RUN


class BadFile(ValueError):
    """A raw file that cannot become a sample: one line, file first."""


class JobFailedError(RuntimeError):
    """A job that cannot go on, and would fail again if it were retried. Exit code 1, one line, no traceback."""

    exit_code = FAILED


class TransientError(JobFailedError):
    """Something that the job needs is gone or does not answer (a node, the cluster, a server): the same command can
    succeed later. Exit code 75, one line, no traceback."""

    exit_code = TRANSIENT


class NotStoredError(TransientError):
    """A store has not taken all of a run. The message says how to send it, which is also how to go on."""


KINDS = {kind.__name__: kind for kind in (UserError, NoSuchRunError, JobFailedError, TransientError, NotStoredError)}
"""The errors that one process tells another by name."""


FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
UNUSABLE = {errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG}
"""A path that cannot be written by nature: a file is in the way, or somebody else's folder."""


def explain(error: OSError, path: str | os.PathLike[str] | None = None) -> str:
    """The path and the reason of a failed read or write on one line; `path` where the error itself names none."""
    where = error.filename if error.filename is not None else path
    reason = error.strerror or " ".join(str(error).split())[:200] or type(error).__name__
    advice = "; free some space" if error.errno in FULL else ""
    return f"{os.fsdecode(where)}: {reason}{advice}" if where is not None else f"{reason}{advice}"
