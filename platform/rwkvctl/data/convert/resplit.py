"""A further split of a prepared data set, by a rule."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from itertools import chain
from pathlib import Path

from rwkvctl.base import files
from rwkvctl.base.errors import UserError
from rwkvctl.data.convert.prepare import write_split
from rwkvctl.data.store import schema
from rwkvctl.data.store.case_forms import groups_of
from rwkvctl.data.store.case_reader import reader_for
from rwkvctl.data.store.case_splits import Cases
from rwkvctl.data.store.leaks import leak_groups_of
from rwkvctl.data.store.manifest import Manifest
from rwkvctl.data.store.splits import (
    PARTS,
    Split,
    folds,
    grouped_split,
    parse_ratio,
    random_split,
    rotated_folds,
    split_name,
)

RULES = "random:8:1:1, grouped:8:1:1, kfold:5, grouped-kfold:5"


def add_split(root: Path | str, rule: str, seed: int = 41) -> list[str]:
    """Add the split (or the k splits) of `rule` to the data set in the folder `root`; their names.

    The pool is train, val and test of the default split together, so that unlabeled samples stay out. If the source
    has a test part of its own, that part stays the test part; so does that of a set of volumes. Groups are patients,
    sequences, videos and near-duplicates. The fingerprint of the data set does not change, because a name here is a
    rule and a seed, which give the same ids on the same data everywhere: runs that began before go on.
    """
    manifest = _on_disk(root)
    ids = manifest.split_ids(manifest.default_split)
    groups = leak_groups_of(manifest)
    own_test = _own_test(manifest, ids)
    pool = [key for part in PARTS for key in ids[part] if key not in own_test]
    cases = Cases.of(manifest, groups)
    made = _made(rule, cases.pool(pool), cases.groups, seed)
    if own_test:
        made = {name: _with_test(split, ids["test"]) for name, split in made.items()}
    return _added(manifest, cases.samples(made), groups, "another --rule or --seed")


def add_folds(root: Path | str, k: int, seed: int = 41) -> list[str]:
    """Add `foldsK_sSEED_fold0` and so on: train and val of the default split in k folds of whole groups, each the val
    part of one; its test part, of the source or drawn, is that of all. Their names."""
    manifest = _on_disk(root)
    made, groups = planned_folds(manifest, k, seed)
    return _added(manifest, made, groups, "another --seed")


def planned_folds(manifest: Manifest, k: int, seed: int = 41) -> tuple[dict[str, Split], dict[str, str]]:
    """The splits that `add_folds` adds, and the leak group of every sample."""
    if not 0 <= seed < 2**32:
        raise UserError(f"--seed {seed}: give one from 0 to 4294967295")
    ids = manifest.split_ids(manifest.default_split)
    groups = leak_groups_of(manifest)
    cases, test = Cases.of(manifest, groups), set(ids["test"])
    pool = cases.pool([key for key in (*ids["train"], *ids["val"]) if key not in test])
    labels = labels_of(manifest, pool) if manifest.task == "classification" else None
    made = cases.samples(rotated_folds(pool, cases.groups, k, seed, ids["test"], labels))
    return made, groups_of(groups, (key for split in made.values() for part in PARTS for key in split.ids[part]))


def labels_of(manifest: Manifest, ids: list[str]) -> dict[str, int]:
    """The class of each image."""
    reader = reader_for(manifest, ids)
    return {reader.key(row): reader.label(row) for row in range(len(reader))}


def add_case_splits(root: Path | str, made: Mapping[str, Split]) -> list[str]:
    """Add splits of the cases of a set of volumes (of its images, of any other set) by name, as others laid them down:
    `Split.ids` are the ids of cases. Their names."""
    manifest = _on_disk(root)
    groups = leak_groups_of(manifest)
    return _added(manifest, Cases.of(manifest, groups).samples(made), groups, "another name")


def _on_disk(root: Path | str) -> Manifest:
    manifest = Manifest.load(root)
    if manifest.uri:
        raise UserError(f"{root}: splits are added on a disk; copy the data set, add the split, upload it again")
    return manifest


def _added(manifest: Manifest, made: dict[str, Split], groups: dict[str, str], remedy: str) -> list[str]:
    known = made.keys() & manifest.splits.keys()
    if known:
        raise UserError(f"{manifest.root}: has the split {min(known)} already; give {remedy}")
    _write(manifest, made, groups_of(groups, (key for split in made.values() for key in chain(*split.ids.values()))))
    return list(made)


def _made(rule: str, pool: list[str], groups: Mapping[str, str], seed: int) -> dict[str, Split]:
    match = re.fullmatch(r"(random|grouped|kfold|grouped-kfold):([\d:]+)", rule)
    if match is None or not 0 <= seed < 2**32:
        raise UserError(f"--rule {rule!r} --seed {seed}: give a rule like {RULES}, and a seed from 0 to 4294967295")
    kind, numbers = match[1], match[2]
    if kind.endswith("kfold"):
        if not numbers.isdigit():
            raise UserError(f"--rule {rule!r}: give one number of folds, for example {kind}:5")
        return folds(pool, groups if kind == "grouped-kfold" else None, int(numbers), seed)
    ratio = parse_ratio(numbers, f"--rule {kind}:")
    if kind == "random":
        return {split_name(ratio, seed): random_split(pool, ratio, seed)}
    return {split_name(ratio, seed).replace("random", "grouped"): grouped_split(pool, groups, ratio, seed)}


def _own_test(manifest: Manifest, ids: dict[str, list[str]]) -> set[str]:
    """The test part of a source that has parts, which stays as it is."""
    parts = {shard.name.rpartition("-")[0] for shard in manifest.shards}
    return set() if parts == {"all"} else set(ids["test"])


def _with_test(split: Split, test: list[str]) -> Split:
    """Whom the rule put into test goes to val: the source's test part remains."""
    val = [*split.ids["val"], *split.ids["test"]]
    return Split(f"{split.rule}; test is the source's", {**split.ids, "val": val, "test": list(test)}, split.seed)


def _write(manifest: Manifest, made: dict[str, Split], groups: dict[str, str]) -> None:
    """The id lists first, the manifest last: at every moment it describes what is there."""
    path = Path(manifest.root) / schema.FILE_NAME
    content = json.loads(path.read_bytes())
    added = content.setdefault("added_splits", {})
    for name, split in made.items():
        added[name] = write_split(Path(manifest.root), name, split, groups)
    schema.Content.model_validate(content)
    files.write_json(path, content)
