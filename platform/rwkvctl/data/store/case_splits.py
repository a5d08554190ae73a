"""Splits are drawn over cases; what they list are samples: slices to train on, whole volumes to be scored.

Of images, a case is its sample.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rwkvctl.base.errors import UserError
from rwkvctl.data.store.case_forms import CaseForms
from rwkvctl.data.store.case_ids import case_of
from rwkvctl.data.store.manifest import Manifest
from rwkvctl.data.store.reader import Reader
from rwkvctl.data.store.splits import Split


@dataclass(frozen=True)
class Cases:
    """The cases of a data set, and the leak group of each."""

    manifest: Manifest
    groups: Mapping[str, str]

    @classmethod
    def of(cls, manifest: Manifest, groups: Mapping[str, str]) -> Cases:
        """groups: of the stored samples."""
        if manifest.has_volumes:
            groups = {case_of(key): group for key, group in groups.items()}
        return cls(manifest, groups)

    def pool(self, ids: Sequence[str]) -> list[str]:
        """The cases of samples, each once, as they lie in the shards."""
        order = {key.decode(): row for row, key in enumerate(self.manifest.index.keys)}
        ordered = sorted(set(ids), key=order.__getitem__)
        return list(dict.fromkeys(map(self._case, ordered)))

    def samples(self, made: Mapping[str, Split]) -> dict[str, Split]:
        """Splits of cases as splits of samples. UserError for a case that is not here, or lacks slices."""
        if not self.manifest.has_volumes:
            return dict(made)
        forms, depths = CaseForms(self.manifest), self._depths()
        found = {}
        for name, split in made.items():
            cases = {part: list(dict.fromkeys(map(case_of, keys))) for part, keys in split.ids.items()}
            if absent := [case for keys in cases.values() for case in keys if case not in depths]:
                raise UserError(f"{self.manifest.location}: split {name}: there is no case {absent[0]}")
            train = [key for case in cases["train"] for key in forms.planes(case, depths[case])]
            ids = {**cases, "train": train}
            found[name] = Split(f"cases: {split.rule}; train: their slices", ids, split.seed)
        return found

    def _case(self, key: str) -> str:
        return case_of(key) if self.manifest.has_volumes else key

    def _depths(self) -> dict[str, int]:
        """How many slices every case has; UserError for one that is not whole."""
        reader, depths, slices = Reader(self.manifest), dict[str, int](), dict[str, list[int]]()
        for row in range(len(reader)):
            meta, shape = reader.meta(row), reader.npy_shape(row, "mask.npy")
            if len(shape) == 3:
                depths[reader.key(row)] = shape[0]
                continue
            slices.setdefault(case := case_of(reader.key(row)), []).append(int(meta["z"]))
            depths[case] = int(meta.get("n_slices") or 0)
        for case, zs in slices.items():
            if sorted(zs) != list(range(min(zs), min(zs) + (depths[case] or len(zs)))):
                raise UserError(
                    f"{self.manifest.location}: {len(zs)} of the {depths[case]} slices of {case} are here, and other "
                    "splits score whole volumes; prepare the data set from all of them"
                )
        return depths
