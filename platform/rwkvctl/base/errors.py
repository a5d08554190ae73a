"""Errors that reach the user as one line."""


class UserError(ValueError):
    """Wrong input: an argument, a file, a spec, a data set.

    The message is one line for the user: what is wrong, where (file, key or field), what to do about it.
    The command line prints it without a traceback and exits with code 2.
    """


class BadFile(ValueError):
    """A raw file that cannot become a sample: one line, file first."""


class JobFailedError(RuntimeError):
    """A job that cannot go on, and would fail again if it were retried. Exit code 1, one line, no traceback."""
