"""A run is a folder: its spec, its journal, its checkpoints, what it made.

<storage>/<name>/
  spec.yaml        the resolved spec
  journal.jsonl    every metric and event, in order
  checkpoints/     latest and best
  model/           the trained model, ready to be loaded
  artifacts/       tables and pictures
  mlflow.json      the MLflow run that the journal goes to
  tensorboard/, wandb/   the journal for these two, where they are asked for

Of a storage s3://bucket/prefix this is a folder of the cache, which `mirror` keeps like the store's run.
"""

from __future__ import annotations

import json
import re
import secrets
import shlex
import shutil
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from rwkvctl.base.errors import UNUSABLE, NoSuchRunError, UserError, explain
from rwkvctl.base.files import write_bytes
from rwkvctl.base.suggestions import did_you_mean
from rwkvctl.config import settings
from rwkvctl.config.specs import changes
from rwkvctl.config.specs.jobs import JOBS, JobSpec, TrainingSpec
from rwkvctl.config.specs.load import build, dump
from rwkvctl.config.specs.parts import RESOLVED_AT_START
from rwkvctl.runs import experiment_view, mirror
from rwkvctl.runs.objects import Objects, Taken

SPEC, JOURNAL, RESULT = "spec.yaml", "journal.jsonl", "result.json"
TRIALS = "artifacts/trials.json"
"""Of a sweep: its table."""


def default_name(spec: JobSpec) -> str:
    """`finetune-clinicdb-20260131-120000-3f2a`: job, what it is about, time, and four digits against collisions."""
    fields = spec.model_dump()
    data = fields.get("data") or fields.get("base", {}).get("data") or {}
    subject = data.get("dataset") if isinstance(data, dict) else None
    parts = [
        fields["base"]["job"] if fields.get("folds") else spec.job,
        fields.get("space_name"),
        subject,
        f"{datetime.now():%Y%m%d-%H%M%S}",
        secrets.token_hex(2),
    ]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(str(part) for part in parts if part))


def create(spec: JobSpec, storage: str) -> Path:
    """A new run folder with the spec in it; a name that is taken is refused."""
    name = spec.name or default_name(spec)
    taken = f"run {name} exists in {storage}: continue it with --resume {name}, or give another --name"
    if mirror.is_uri(storage):
        mirror.probe(storage)
        content = dump(spec.model_copy(update={"name": name, "storage": storage})).encode()
        try:
            return mirror.begin(f"{storage}/{name}", SPEC, content)
        except Taken:
            raise UserError(taken) from None
    folder = Path(storage) / name
    if folder.exists():
        raise UserError(taken)
    try:
        folder.mkdir(parents=True)
        write_spec(folder, spec.model_copy(update={"name": name, "storage": storage}))
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        if error.errno in UNUSABLE:
            raise UserError(f"storage {storage}: cannot store runs ({explain(error)}); give another folder") from None
        raise
    return folder


def write_spec(folder: Path, spec: JobSpec) -> None:
    write_bytes(folder / SPEC, dump(spec).encode())


def read_spec(folder: Path) -> JobSpec:
    """The spec that a run was started with."""
    path = folder / SPEC
    try:
        fields = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{folder}: not a run ({SPEC} is missing)") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from None
    kind = JOBS.get(str(fields.get("job"))) if isinstance(fields, dict) else None
    if kind is None:
        raise UserError(f"{path}: field job must be one of {', '.join(JOBS)}")
    return build(kind, changes.with_absent(fields), str(path))


def find(reference: str, storage: str) -> Path:
    """The folder of a run by its name, its path or URI, or its MLflow run id (or eight first characters and more)."""
    if mirror.is_uri(reference):
        return mirror.opened(reference)
    for folder in (named(reference, storage), Path(reference)):
        if folder is not None and (folder / SPEC).is_file():
            return folder.absolute()
    runs = folders(storage)
    if len(reference) >= 8:
        ids = {folder: mlflow_run_id(folder) for folder in runs}
        found = [folder for folder, run_id in ids.items() if run_id and run_id.startswith(reference)]
        if len(found) == 1:
            return found[0]
    hint = did_you_mean(reference, [folder.name for folder in runs], "list runs with: rwkvctl run list")
    raise NoSuchRunError(f"run {reference!r} is not in {storage}: {hint}")


def named(name: str, storage: str) -> Path | None:
    """The folder of a run of that name in a storage, if there is one; of a folder without a look."""
    if not mirror.is_uri(storage):
        return Path(storage) / name
    if "/" in name or name in ("", ".", ".."):
        return None
    try:
        return mirror.opened(f"{storage}/{name}")
    except NoSuchRunError:
        return None


def folders(storage: str) -> list[Path]:
    """The folders of all runs of a storage, newest first; of an object store's with what the runs say of themselves."""
    if mirror.is_uri(storage):
        stores = [mirror.Mirror.at(f"{storage}/{name}") for name in Objects(storage).folders()]
        with ThreadPoolExecutor(16) as pool:
            ages = dict(zip(stores, pool.map(lambda store: -store.look(), stores), strict=True))
        runs = [store for store in stores if (store.folder / SPEC).is_file()]
        return [store.folder for store in sorted(runs, key=lambda store: (ages[store], store.folder.name))]
    found = [path.parent for path in Path(storage).glob(f"*/{SPEC}")]
    return sorted(found, key=lambda folder: (-folder.stat().st_mtime, folder.name))


def run_names(storage: str) -> list[str]:
    """All runs of a storage, newest first."""
    return [folder.name for folder in folders(storage)]


def discard_unbegun(folder: Path) -> None:
    """Delete a run that was refused before it began: that has no journal."""
    in_store = mirror.of(folder)
    if in_store is not None and not in_store.discard(unless="journal/"):
        return
    if not (folder / JOURNAL).exists():
        shutil.rmtree(folder, ignore_errors=True)


def mlflow_run_id(folder: Path) -> str | None:
    """The MLflow run that a run folder is sent to; None before the first contact."""
    try:
        return json.loads((folder / "mlflow.json").read_text())["run_id"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def mlflow_address(folder: Path) -> str | None:
    """Where a browser finds the run: on its tracking server, or on the one that `rwkvctl ui` starts over a database on
    this machine. None before the first contact."""
    try:
        known = json.loads((folder / "mlflow.json").read_text())
        uri, place = str(known["tracking_uri"]), (known["experiment_id"], known["run_id"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if uri.startswith(("http://", "https://")):
        return experiment_view.of_run(uri, *place)
    return f"{experiment_view.of_run(experiment_view.LOCAL, *place)} (after: rwkvctl ui)"


def result(folder: Path) -> dict[str, Any] | None:
    """What a finished run has left in `result.json`; None while it is not finished."""
    try:
        return json.loads((folder / RESULT).read_text())
    except (OSError, ValueError):
        return None


def trials(folder: Path) -> dict[str, Any] | None:
    """The table that a sweep has left; None of other runs, and before its end."""
    try:
        return json.loads((folder / TRIALS).read_text())
    except (OSError, ValueError):
        return None


def resume_command(job: str, folder: Path) -> str:
    """What is typed to continue a run."""
    return f"rwkvctl {job} --resume {typed(folder)}"


def command(verb: str, folder: Path) -> str:
    """What is typed to see or stop a run: `rwkvctl run VERB RUN`."""
    return f"rwkvctl run {verb} {typed(folder)}"


def typed(folder: Path) -> str:
    """How a run is named on a command line: its name is enough where runs are kept, its path or URI elsewhere."""
    place, storage = mirror.address(folder.absolute()), settings.load().storage
    return shlex.quote(folder.name if place == f"{storage}/{folder.name}" else place)


def differences(old: JobSpec, new: JobSpec, *, longer: bool = True) -> list[str]:
    """Fields in which two specs would compute something else, as `path: old -> new`."""
    before, after = old.model_dump(mode="json"), keep_resolved(old, new).model_dump(mode="json")
    return changes.differences(before, after, longer=longer)


def keep_resolved(old: JobSpec, new: JobSpec) -> JobSpec:
    """`new`, in which `auto` means what it was resolved to when the run was first started."""
    if not isinstance(old, TrainingSpec) or not isinstance(new, TrainingSpec):
        return new
    open_yet = [field for field in RESOLVED_AT_START if getattr(new.train, field) == "auto"]
    resolved = {field: getattr(old.train, field) for field in open_yet}
    return new.model_copy(update={"train": new.train.model_copy(update=resolved)})


def resume(reference: str, spec: JobSpec | None, storage: str) -> Path | None:
    """The run folder to continue: a run by name, or for `auto` the newest unfinished run of an equal spec.

    Returns None when `auto` finds nothing to continue: the caller starts a new run. What may differ (workers,
    address) is taken over by `adopt`.
    """
    if reference != "auto":
        folder = find(reference, storage)
        if spec is not None:
            refuse_changes(folder, spec)
        return folder
    assert spec is not None
    for folder in filter(None, [named(spec.name, storage)] if spec.name else folders(storage)):
        if not (folder / SPEC).is_file() or (result(folder) is not None and spec.name is None):
            continue
        old = read_spec(folder)
        if old.job == spec.job and (spec.name or not differences(old, spec, longer=False)):
            refuse_changes(folder, spec if spec.name else spec.model_copy(update={"name": old.name}))
            return folder
    return None


def refuse_changes(folder: Path, spec: JobSpec) -> JobSpec:
    """UserError if a run cannot be continued with this spec; returns the spec that it has."""
    old = read_spec(folder)
    if spec.name not in (None, old.name):
        raise UserError(f"run {folder.name}: cannot be renamed to {spec.name!r}; leave out --name, or start a new run")
    if changed := differences(old, spec):
        raise UserError(f"run {folder.name} was started with another spec ({changes.few(changed)}); start a new run")
    return old


def adopt(folder: Path, spec: JobSpec | None) -> None:
    """Take over into a run's spec what may change; refuse the rest."""
    if spec is None:
        return
    old = refuse_changes(folder, spec)
    write_spec(folder, keep_resolved(old, spec).model_copy(update={"name": old.name, "storage": old.storage}))
    mirror.send(folder, SPEC)
