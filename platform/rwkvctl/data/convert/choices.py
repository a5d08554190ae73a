"""The choices of `prepare`, checked against what a data set knows of them."""

from __future__ import annotations

import dataclasses
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rwkvctl.base.errors import UserError
from rwkvctl.data.convert.class_table import ClassTable
from rwkvctl.data.convert.discover import slug
from rwkvctl.data.convert.formats.base import Dataset, Options


def options_of(
    dataset: Dataset,
    out: Path | str,
    *,
    name: str | None = None,
    ratio: str | None = None,
    split: str | None = None,
    seeds: Sequence[int] | None = None,
    classes: Sequence[str] | ClassTable | None = None,
    **others: Any,
) -> Options:
    """The choices of `prepare`, checked; `others` are further fields of `Options`."""
    if split is not None and "split" not in dataset.options:
        ratio, split = _only_one(ratio, split), None
    table = classes if isinstance(classes, ClassTable) else None
    names = classes.names if isinstance(classes, ClassTable) else classes
    options = Options(
        dataset=_dataset_name(name, Path(out), dataset),
        ratio=ratio,
        split=split,
        seeds=None if seeds is None else tuple(dict.fromkeys(seeds)),
        classes=tuple(names) if names else None,
        class_table=table,
        **others,
    )
    _check_options(options, dataset)
    return options


def _only_one(ratio: str | None, split: str) -> str:
    if ratio not in (None, split):
        raise UserError(f"--ratio {ratio} and --split {split}: give one ratio, with --ratio")
    return split


def _dataset_name(given: str | None, out: Path, dataset: Dataset) -> str:
    """What the data set calls itself: the name given, else that of what is prepared (synapse, wherever it lies); a
    generic format has none of its own, so there the folder's counts."""
    text = given or (dataset.name if dataset.expected else out.name)
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()  # part of registry names
    name = slug(plain)
    if not name or len(name) > 60:
        what = f"--name {text!r}" if given else f"--name: the folder's name {text!r} makes none"
        raise UserError(f"{what}; give letters a-z and digits, at most 60, for example --name clinicdb")
    return name


def _check_options(options: Options, dataset: Dataset) -> None:
    for field in (own.name for own in dataclasses.fields(Options) if own.name not in ("dataset", "allow_partial")):
        if getattr(options, field) is not None and field not in dataset.options:
            flag = "--" + field.replace("seeds", "seed").removeprefix("more_").replace("_", "-")
            again = (
                " a second time" if field.startswith("more_") and field.removeprefix("more_") in dataset.options else ""
            )
            raise UserError(f"{flag}{again}: {dataset.name} has no such choice; leave it out")
    if options.seeds is not None and (not options.seeds or any(not 0 <= seed < 2**32 for seed in options.seeds)):
        raise UserError(f"--seed {list(options.seeds)}: give whole numbers from 0 to 4294967295")
    names = options.classes or ()
    if len(set(names)) != len(names) or not all(names):
        raise UserError(f"--classes {','.join(names)}: names must be different and not empty")
    if len(names) > 255:
        raise UserError(f"--classes: {len(names)} names; masks hold at most 255 classes")
    if options.max_side is not None and options.max_side < 64:
        raise UserError(f"--max-side {options.max_side}: give at least 64 pixels")
