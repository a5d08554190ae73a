"""The studies of the sweeps of a storage: which there are, and under which number Optuna's dashboard shows one."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import optuna

from rwkvctl.base.errors import UserError
from rwkvctl.config.specs.jobs import TuneSpec
from rwkvctl.runs import folder as run_folder
from rwkvctl.sweeps.study import open_storage


class Found(NamedTuple):
    """A sweep that has a study, and the study's number in its storage."""

    folder: Path
    number: int


def of(folder: Path) -> tuple[optuna.storages.BaseStorage, int] | None:
    """The storage of a sweep's study, and the study's number there; None where the sweep has not made one yet.

    Raises:
        UserError: not a sweep, or its storage cannot be opened.
    """
    spec = run_folder.read_spec(folder)
    if not isinstance(spec, TuneSpec):
        raise UserError(f"run {folder.name}: is a job of kind {spec.job}, not a sweep")
    where = spec.study_storage or str(folder / "study.db")
    if "://" not in where and not Path(where).exists():
        return None  # and opening it would make the file
    storage = open_storage(spec, folder)
    try:
        return storage, storage.get_study_id_from_name(folder.name)
    except KeyError:
        return None


def number_of(folder: Path) -> int | None:
    """The number alone; no connection is left open."""
    found = of(folder)
    if found is None:
        return None
    storage, number = found
    if isinstance(storage, optuna.storages.RDBStorage):
        storage.remove_session()
        storage.engine.dispose()
    return number


def named(sweep: str, storage: str) -> Found:
    """The study of a sweep by name, path or MLflow id; UserError if it has none."""
    folder = run_folder.find(sweep, storage)
    number = number_of(folder)
    if number is None:
        raise UserError(f"sweep {folder.name}: has no study yet; it has one when its first trial has begun")
    return Found(folder, number)


def newest(storage: str) -> Found | None:
    """The study of the newest sweep that has one."""
    for folder in run_folder.folders(storage):
        try:
            if run_folder.read_spec(folder).job != "tune":
                continue
        except UserError:  # of a run that is broken, or newer than this version
            continue
        if (number := number_of(folder)) is not None:
            return Found(folder, number)
    return None
