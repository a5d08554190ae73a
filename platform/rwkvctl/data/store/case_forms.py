"""A case of a set of volumes in the form that it is not stored in.

A case is stored as slices (`CASE_z000`, `CASE_z001`, ...) or as one volume (`CASE`), as the first split needed it.
Another split may want it the other way: then its ids are those that the other form would have, and the samples are read
out of what is there, see `case_reader`. So a split names slices to train on and volumes to be scored, whatever lies in
the shards.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from rwkvctl.base.errors import UserError
from rwkvctl.data.store.case_ids import SLICE, case_of
from rwkvctl.data.store.manifest import Manifest

Z_DIGITS = 3
"""Of the slices of a set that stores none."""


@dataclass(frozen=True)
class Place:
    """Where a sample lies: the rows in the index that it is made of; z: which slice of the volume there it is; whether
    it is a volume of the slices there."""

    rows: tuple[int, ...]
    z: int | None = None
    is_stack: bool = False


class CaseForms:
    """The cases of a data set and how they are stored."""

    def __init__(self, manifest: Manifest):
        self.manifest = manifest
        self.row_of = {key.decode(): row for row, key in enumerate(manifest.index.keys)}

    @cached_property
    def slices(self) -> dict[str, list[tuple[int, str]]]:
        """Case -> z and key of its stored slices, in order."""
        found: dict[str, list[tuple[int, str]]] = {}
        for key in self.row_of:
            if match := SLICE.fullmatch(key):
                found.setdefault(match["case"], []).append((int(match["z"]), key))
        return {case: sorted(own) for case, own in found.items()}

    @cached_property
    def digits(self) -> int:
        """Of z in the ids of slices."""
        return max((len(key) - len(case) - 2 for case, own in self.slices.items() for _, key in own), default=Z_DIGITS)

    def place(self, key: str) -> Place:
        """UserError for an id that is no sample in either form."""
        if (row := self.row_of.get(key)) is not None:
            return Place((row,))
        if own := self.slices.get(key):
            zs = [z for z, _ in own]
            if zs != list(range(zs[0], zs[0] + len(zs))):
                raise UserError(f"{self.manifest.location}: {key} lacks slices, so it is no volume; prepare it again")
            return Place(tuple(self.row_of[slice_key] for _, slice_key in own), is_stack=True)
        match = SLICE.fullmatch(key)
        if match and (row := self.row_of.get(match["case"])) is not None:
            return Place((row,), int(match["z"]))
        raise UserError(
            f"{self.manifest.location}: the split names {key!r}, which is in no shard; prepare the data set again"
        )

    def planes(self, case: str, depth: int) -> list[str]:
        """The ids of its slices."""
        if own := self.slices.get(case):
            return [key for _, key in own]
        return [f"{case}_z{z:0{self.digits}d}" for z in range(depth)]


def stored_rows(manifest: Manifest, ids: Sequence[str]) -> NDArray[np.int64]:
    """The rows in the index that the samples `ids` are made of, each once or more."""
    try:
        return np.asarray(manifest.index.rows(list(ids)))
    except KeyError:
        if not manifest.has_volumes:
            return np.asarray(manifest.rows(list(ids)))  # which says what is wrong
    forms = CaseForms(manifest)
    return np.array([row for key in ids for row in forms.place(key).rows], np.int64)


def groups_of(groups: Mapping[str, str], ids: Iterable[str]) -> dict[str, str]:
    """The groups of stored samples with those of `ids` that are stored in the other form."""
    of_case = {case_of(key): group for key, group in groups.items()}
    return dict(groups) | {key: of_case[case_of(key)] for key in ids if key not in groups and case_of(key) in of_case}
