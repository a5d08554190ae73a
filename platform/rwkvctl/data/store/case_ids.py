"""Which case a sample of a set of volumes is of, by the form of its id: `CASE`, or `CASE_z012` for a slice."""

from __future__ import annotations

import re
from collections.abc import Iterable

SLICE = re.compile(r"(?P<case>.+)_z(?P<z>\d+)")


def case_of(key: str) -> str:
    """The case that a sample is, or is a slice of."""
    match = SLICE.fullmatch(key)
    return match["case"] if match else key


def cases_of(keys: Iterable[str]) -> list[str]:
    """The cases that samples are of, each once, in the order of the samples."""
    return list(dict.fromkeys(map(case_of, keys)))
