"""`splits_final.json`: nnU-Net's folds, `[{"train": [CASE, ...], "val": [CASE, ...]}, ...]`, as a data set's splits."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rwkvctl.base.errors import UserError
from rwkvctl.data.convert.discover import normal_id
from rwkvctl.data.convert.formats.base import Plan
from rwkvctl.data.convert.formats.volumes import Case, Plane, planes
from rwkvctl.data.convert.sources import RawFile, Source
from rwkvctl.data.store.splits import FOLD, PARTS, Split

NAME, FILE = "nnunet", "splits_final.json"
"""Splits are `nnunet_fold0` and so on, which `finetune --folds nnunet` takes."""


@dataclass(frozen=True)
class Folds:
    """The sample keys of train and val of each fold, and of the test cases, which are those of imagesTs with labels."""

    file: RawFile
    each: tuple[Mapping[str, tuple[str, ...]], ...]
    test: tuple[str, ...] = ()

    @property
    def first(self) -> dict[str, str]:
        """The part of each case in fold 0; cases that only other folds have are trained on there."""
        every = {key: "train" for fold in self.each for part in ("train", "val") for key in fold[part]}
        return every | dict.fromkeys(self.each[0]["val"], "val") | dict.fromkeys(self.test, "test")

    def split(self, fold: int, ids: Mapping[str, Sequence[str]]) -> Split:
        return Split(f"fold {fold} of {FILE}", {part: list(ids[part]) for part in PARTS})

    @property
    def parts(self) -> list[dict[str, tuple[str, ...]]]:
        return [{**fold, "test": self.test} for fold in self.each]


def find(source: Source, root: str) -> RawFile | None:
    """The file beside dataset.json."""
    return next((file for file in source.files if file.path == f"{root}/{FILE}".lstrip("/")), None)


def read(file: RawFile, keys: Mapping[str, str], test: Sequence[str] = (), *, lenient: bool = False) -> Folds:
    """keys: sample keys by the ids of cases. UserError for what is no list of folds, or names a case that is not there;
    lenient: such a case is left out."""
    try:
        content = json.loads(file.read())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: is not JSON ({str(error)[:80]})") from error
    if not isinstance(content, list) or not content or not all(map(_is_fold, content)):
        raise UserError(f'{file}: must be a list of folds, [{{"train": [CASE, ...], "val": [CASE, ...]}}, ...]')
    folds = []
    for number, fold in enumerate(content):
        parts = {part: _keys(file, number, fold[part], keys, lenient) for part in ("train", "val")}
        if both := set(parts["train"]) & set(parts["val"]):
            raise UserError(f"{file}: fold {number} has {min(both)} in train and in val; leave it in one of them")
        folds.append(parts)
    return Folds(file, tuple(folds), tuple(test))


def _is_fold(fold: Any) -> bool:
    lists = [fold.get(part) for part in ("train", "val")] if isinstance(fold, dict) else [None]
    return all(isinstance(own, list) and own and all(isinstance(name, str) for name in own) for own in lists)


def _keys(file: RawFile, number: int, names: list[str], keys: Mapping[str, str], lenient: bool) -> tuple[str, ...]:
    found = [(name, keys.get(normal_id(name))) for name in names]
    absent = next((name for name, key in found if key is None), None)
    if absent is not None and not lenient:
        raise UserError(f"{file}: fold {number} names {absent}, of which there is no image with labels")
    return tuple(key for _, key in found if key is not None)


def of_volumes(plan: Plan, folds: Folds) -> None:
    """Give a plan, whose cases lie as fold 0 has them, the splits of all folds: slices train, volumes are scored."""
    cases = {case.key: case for own in plan.parts.values() for case in map(_case, own)}

    def make_splits(ids: Mapping[str, Sequence[str]], groups: Mapping[str, str]) -> dict[str, Split]:
        there = {_case_key(key, part) for part, keys in ids.items() for key in keys}
        made = {}
        for number, parts in enumerate(folds.parts):
            kept = {part: [key for key in keys if key in there] for part, keys in parts.items()}
            slices = [plane.key for plane in planes(cases[key] for key in kept["train"])]
            made[f"{NAME}{FOLD}{number}"] = folds.split(number, {**kept, "train": slices})
        return made

    plan.make_splits = make_splits


def of_images(plan: Plan, folds: Folds) -> None:
    """The same of images, which are samples themselves."""

    def make_splits(ids: Mapping[str, Sequence[str]], groups: Mapping[str, str]) -> dict[str, Split]:
        there = {key for keys in ids.values() for key in keys}
        return {
            f"{NAME}{FOLD}{number}": folds.split(
                number, {part: [key for key in keys if key in there] for part, keys in parts.items()}
            )
            for number, parts in enumerate(folds.parts)
        }

    plan.make_splits = make_splits


def _case(item: Any) -> Case:
    case = item.case if isinstance(item, Plane) else item
    assert isinstance(case, Case)
    return case


def _case_key(key: str, part: str) -> str:
    """The case of a stored sample: slices lie in the part train."""
    return key.rpartition("_z")[0] if part == "train" else key
