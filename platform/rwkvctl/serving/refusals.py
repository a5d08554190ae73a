"""Why a request gets no mask, in one line with its status."""

from __future__ import annotations

import re
from pathlib import Path

PATH = re.compile(r"(?<![\w.])/(?:[\w.+-]+/)+[\w.+-]*")
OF_A_LIBRARY = re.compile(r"\(Exception thrown in .*\)")


class Refused(Exception):
    """A request that is answered with a status of 4xx or 5xx and a line that names no file of the server."""

    def __init__(self, status: int, line: str):
        super().__init__(status, line)  # both, so that it can be sent from one process to another
        self.status, self.line = status, line


class Late(Refused):
    """The time of a request is over."""

    def __init__(self, seconds: float):
        Exception.__init__(self, seconds)
        self.status, self.line = 504, f"took more than {seconds:g} s; give a smaller scan, or raise limits.seconds"


def without_paths(error: Exception, folder: Path) -> str:
    """The line of an error about an upload, without the folder that it was kept in, or any other."""
    line = " ".join(str(error).split()).removeprefix("input ")
    for path in (*sorted(folder.rglob("*"), key=lambda each: -len(str(each))), folder):
        line = line.replace(f"{path}: ", "").replace(str(path), "the upload")
    line = line.replace("leave --format out", "accept application/gzip")
    return PATH.sub("...", OF_A_LIBRARY.sub("(it is damaged)", line))
