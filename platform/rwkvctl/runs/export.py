"""Runs leave MLflow: their points, settings and files, in a form that needs no MLflow to be read (see `export_folder`).

A run that has ended is fetched once, and again only where MLflow says something else of it. Of one that is still
running all is fetched again the next time. The history of a metric is read page by page to its end.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rwkvctl.base.errors import JobFailedError, NoSuchRunError, UserError
from rwkvctl.base.suggestions import did_you_mean
from rwkvctl.base.uris import mask, mask_value
from rwkvctl.runs import export_folder, journal
from rwkvctl.runs import folder as run_folder
from rwkvctl.runs.export_folder import ExportFolder
from rwkvctl.runs.mlflow_client import connect, find_run, when_free
from rwkvctl.runs.stored_journal import refresh
from rwkvctl.runs.sync import first_line

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput, FileInfo, LoggedModel, Metric, Run
    from mlflow.store.artifact.artifact_repo import ArtifactRepository

PAGE_POINTS = 25_000  # as MLflow's own client asks for
PAGE_RUNS = 200
AT_ONCE = 4
"""Runs that are fetched at once."""
TELL_EVERY = 5.0
PARENT = "mlflow.parentRunId"
ENDED = ("FINISHED", "FAILED", "KILLED")
Say = Callable[[str], None]
Where = tuple[str, str | None, str | None]
"""Of a point: the logged model that it belongs to, and the data set by name and digest."""


@dataclass(frozen=True)
class Wanted:
    """What is exported from one tracking server: runs with all below them, or a whole experiment."""

    tracking_uri: str
    run_ids: tuple[str, ...] = ()
    experiment: str | None = None


@dataclass
class Exported:
    """What a call of `export` has found and fetched."""

    runs: int = 0
    running: int = 0
    points: int = 0
    files: int = 0
    bytes: int = 0
    fetched_files: int = 0
    fetched_bytes: int = 0


def wanted(references: Iterable[str], storage: str, tracking_uri: str) -> list[Wanted]:
    """The runs of references: a run here, an MLflow run id, or the name of a study. UserError for what is none."""
    found: dict[str, list[str]] = {}
    for reference in references:
        uri, run_id = _resolve(reference, storage, tracking_uri)
        found.setdefault(uri, []).append(run_id)
    return [Wanted(uri, tuple(dict.fromkeys(ids))) for uri, ids in found.items()]


def _resolve(reference: str, storage: str, tracking_uri: str) -> tuple[str, str]:
    """Tracking server and MLflow run id."""
    try:
        folder = run_folder.find(reference, storage)
    except NoSuchRunError:
        if (run_id := _only_in_mlflow(connect(tracking_uri), reference)) is None:
            raise
        return tracking_uri, run_id
    refresh(folder)  # of a store's run
    try:
        sent = json.loads((folder / "mlflow.json").read_text())
        return str(sent["tracking_uri"]), str(sent["run_id"])
    except (OSError, ValueError, KeyError, TypeError):  # it was sent from another machine, or not yet
        uri = run_folder.read_spec(folder).tracking.uri or tracking_uri
        path = folder / run_folder.JOURNAL
        run_id = find_run(connect(uri), journal.run_uid(path)) if path.exists() else None
    if run_id is None:
        raise UserError(f"run {folder.name}: MLflow does not have it yet; send it with: rwkvctl sync {folder.name}")
    return uri, run_id


def _only_in_mlflow(client: MlflowClient, reference: str) -> str | None:
    """The id of a run that has no folder here, such as the one that a study's runs are children of."""
    from mlflow.exceptions import MlflowException

    if re.fullmatch(r"[0-9a-f]{32}", reference):
        try:
            return client.get_run(reference).info.run_id
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
        return None
    if "'" in reference:
        return None
    experiments = [each.experiment_id for each in when_free(client.search_experiments)]
    found = when_free(client.search_runs, experiments, f"tags.`rwkvctl.study` = '{reference}'", max_results=1)
    return found[0].info.run_id if found else None


def export(chosen: Iterable[Wanted], out: Path, say: Say = lambda text: None) -> Exported:
    """Bring runs into a folder, beside those that it has.

    Raises:
        UserError: the folder cannot be taken, there is no such experiment, or a name of a file would leave the folder.
        JobFailedError: MLflow does not answer, or not as it should. What has been fetched is kept.
    """
    done = Exported()
    with export_folder.opened(out) as folder:
        for each in chosen:
            try:
                _export(each, folder, say)
            except (UserError, JobFailedError):
                raise
            except OSError as error:
                if error.filename is not None or error.errno is not None:  # of this machine's disk
                    raise
                raise _failed(each.tracking_uri, error) from error
            except Exception as error:  # whatever a server can do
                raise _failed(each.tracking_uri, error) from error
        _write_tables(folder)
        done.fetched_files, done.fetched_bytes = len(folder.fetched), sum(folder.fetched)
        folder.complete()
        done.runs = len(folder.rows)
        done.running = sum(not row["final"] for row in folder.rows.values())
        done.points = sum(row["points"] for row in folder.rows.values())
        sizes = [kept.size for name, kept in folder.files.items() if not name.startswith(export_folder.STATE)]
        done.files, done.bytes = len(sizes), sum(sizes)
    return done


def _failed(tracking_uri: str, error: Exception) -> JobFailedError:
    again = "what was fetched is kept: give the same command again"
    return JobFailedError(f"MLflow at {mask(tracking_uri)[:80]}: {first_line(error)}; {again}")


def _export(each: Wanted, folder: ExportFolder, say: Say) -> None:
    client = connect(each.tracking_uri)
    source = Source(client, each.tracking_uri, folder)
    ids = [_experiment(client, each.experiment)] if each.experiment is not None else None
    runs = _runs_of(client, ids) if ids is not None else _with_children(client, each.run_ids)
    count, told = 0, time.monotonic()
    pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="export")
    try:
        for page in runs:
            source.know(page)
            for _ in pool.map(source.fetch, page):
                count += 1
                if time.monotonic() - told > TELL_EVERY:
                    told = time.monotonic()
                    say(f"{count} runs, {sum(folder.fetched) / 1e6:.1f} MB fetched")
    finally:
        pool.shutdown(cancel_futures=True)


def _experiment(client: MlflowClient, name: str) -> str:
    found = when_free(client.get_experiment_by_name, name)
    if found is None:
        names = [each.name for each in client.search_experiments()]
        raise UserError(f"--experiment {name}: there is no such experiment; {did_you_mean(name, names)}")
    if found.lifecycle_stage == "deleted":
        raise UserError(f"--experiment {name}: is deleted; bring it back with `mlflow experiments restore`")
    return found.experiment_id


def _runs_of(client: MlflowClient, experiments: list[str], condition: str = "") -> Iterator[list[Run]]:
    """All runs, page by page, the oldest first: those that begin meanwhile come last."""
    token = None
    while True:
        page = when_free(
            client.search_runs,
            experiments,
            condition,
            max_results=PAGE_RUNS,
            order_by=["attributes.start_time ASC"],
            page_token=token,
        )
        yield list(page)
        if not (token := page.token):
            return


def _with_children(client: MlflowClient, run_ids: Iterable[str]) -> Iterator[list[Run]]:
    """These runs and all below them: a sweep's trials, what a study has trained and evaluated."""
    experiments = [each.experiment_id for each in when_free(client.search_experiments)]
    first = [when_free(client.get_run, run_id) for run_id in run_ids]
    for run in first:
        if run.info.lifecycle_stage == "deleted":
            again = f"mlflow runs restore --run-id {run.info.run_id}"
            raise UserError(f"MLflow run {run.info.run_id} is deleted: `{again}` brings it back")
    seen = {run.info.run_id for run in first}
    waiting = list(seen)
    yield first
    while waiting:
        for page in _runs_of(client, experiments, f"tags.`{PARENT}` = '{waiting.pop()}'"):
            new = [run for run in page if run.info.run_id not in seen]
            seen |= {run.info.run_id for run in new}
            waiting += [run.info.run_id for run in new]
            yield new


def _write_tables(folder: ExportFolder) -> None:
    """runs.parquet and metrics.parquet, unless they are there, made from the same."""
    from rwkvctl.runs import export_tables

    rows = folder.ordered_rows()
    stamp = _digest(rows)
    if not folder.whole(export_folder.RUNS, stamp):
        with folder.incoming() as path:
            export_tables.write_runs(path, rows)
            folder.put(path, export_folder.RUNS, stamp)
    parts = [_points_name(row["run_id"]) for row in rows]
    if lost := [row["run_id"] for row, name in zip(rows, parts, strict=True) if not (folder.out / name).exists()]:
        raise UserError(
            f"{folder.out / export_folder.STATE}: the points of run {lost[0]} are gone; export it again too"
        )
    stamp = _digest([folder.files[name].sha256 for name in parts])
    if not folder.whole(export_folder.METRICS, stamp):
        with folder.incoming() as path:
            export_tables.merge_points(path, [folder.out / name for name in parts])
            folder.put(path, export_folder.METRICS, stamp)


def _points_name(run_id: str) -> str:
    return f"{export_folder.STATE}/metrics/{run_id}.parquet"


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Place:
    """A logged model: where its files are, and what is different when they may be."""

    model_id: str
    location: str
    changed: str


@dataclass
class Experiment:
    """What its runs and their points have to do with MLflow's logged models."""

    name: str
    points: dict[str, dict[tuple[str, int, int], list[Where]]] = field(default_factory=dict)
    """By run, and by key, step and time."""
    models: dict[str, list[Place]] = field(default_factory=dict)
    """Those that a run has made."""

    def add(self, model: LoggedModel) -> None:
        changed = f"{model.status} {model.last_updated_timestamp}"
        place = Place(model.model_id, model.artifact_location, changed)
        self.models.setdefault(model.source_run_id or "", []).append(place)
        for each in model.metrics or []:
            where = (model.model_id, each.dataset_name, each.dataset_digest)
            at = (each.key, each.step, each.timestamp)
            self.points.setdefault(each.run_id or "", {}).setdefault(at, []).append(where)


@dataclass
class Source:
    """One tracking server, from which runs are fetched into a folder."""

    client: MlflowClient
    tracking_uri: str
    folder: ExportFolder
    experiments: dict[str, Experiment] = field(default_factory=dict)

    def know(self, runs: Iterable[Run]) -> None:
        """Read what is known of the runs' experiments."""
        for each in sorted({run.info.experiment_id for run in runs} - self.experiments.keys()):
            self.experiments[each] = Experiment(self.client.get_experiment(each).name)
            for model in self._models(each):
                self.experiments[each].add(model)

    def fetch(self, run: Run) -> None:
        """All of a run that is not in the folder yet."""
        info = run.info
        experiment = self.experiments[info.experiment_id]
        models = experiment.models.get(info.run_id, [])
        for name in (info.run_id, *(model.model_id for model in models)):
            if not re.fullmatch(r"[\w-]{1,64}", name):
                raise UserError(f"MLflow at {mask(self.tracking_uri)[:80]}: {name[:40]!r} is no id of a run or a model")
        final = info.status in ENDED
        stamp = _digest([info.status, info.start_time, info.end_time]) if final else ""
        points = self._points(run, stamp)
        self._files(info.run_id, info.artifact_uri, f"artifacts/{info.run_id}", stamp)
        for model in models:
            own = stamp and _digest([stamp, model.changed])
            self._files(info.run_id, model.location, f"models/{model.model_id}", own)
        tags, params = run.data.tags, run.data.params
        self.folder.record(
            {
                "run_id": info.run_id,
                "name": info.run_name,
                "experiment": experiment.name,
                "status": info.status,
                "start": info.start_time,
                "end": info.end_time,
                "parent_run_id": tags.get(PARENT),
                "params": {key: mask_value(key, value) for key, value in sorted(params.items())},
                "tags": {key: mask_value(key, value) for key, value in sorted(tags.items())},
                "models": [model.model_id for model in models],
                "datasets": [of_dataset(each) for each in run.inputs.dataset_inputs] if run.inputs else [],
                "points": points,
                "final": final,
                "tracking_uri": mask(self.tracking_uri),
            }
        )

    def _points(self, run: Run, stamp: str) -> int:
        """Every point of a run, unless they are here; returns how many there are."""
        from rwkvctl.runs.export_tables import PointsWriter, count

        run_id = run.info.run_id
        name = _points_name(run_id)
        last = sorted((each.key, each.step, each.timestamp, str(each.value)) for each in run.data._metric_objs)
        stamp = stamp and _digest([stamp, last])
        if self.folder.whole(name, stamp):
            return count(self.folder.out / name)
        places = self.experiments[run.info.experiment_id].points.get(run_id, {})
        with self.folder.incoming() as path:
            with PointsWriter(path, run_id) as writer:
                for key in sorted(run.data.metrics):
                    before = writer.rows
                    for page in self._history(run_id, key):
                        writer.add(with_models(page, places))
                    if writer.rows == before:
                        raise JobFailedError(f"MLflow run {run_id}: metric {key!r} has a last value and no history")
            self.folder.put(path, name, stamp)
        return writer.rows

    def _history(self, run_id: str, key: str) -> Iterator[list[Metric]]:
        """The points of a metric, page by page; MLflow's own `get_metric_history` has them all in memory at once."""
        store, token = self.client._tracking_client.store, None
        while True:
            page = when_free(store.get_metric_history, run_id, key, max_results=PAGE_POINTS, page_token=token)
            yield list(page)
            before, token = token, page.token
            if not token:
                return
            if token == before:
                raise JobFailedError(f"MLflow run {run_id}: the history of {key!r} comes to no end")

    def _files(self, run_id: str, location: str, folder: str, stamp: str) -> None:
        """The files of a run, or of a model that it has made."""
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        repository = get_artifact_repository(location, tracking_uri=self.tracking_uri)
        for found in listed(repository, run_id):
            name = f"{folder}/{found.path}"
            if self.folder.whole(name, stamp, found.file_size):
                continue
            with self.folder.incoming() as path:
                repository._download_file(found.path, str(path))  # to this path and nowhere else
                size = path.stat().st_size
                if stamp and found.file_size is not None and size != found.file_size:
                    raise JobFailedError(
                        f"MLflow run {run_id}: artifact {found.path} came with {size} of {found.file_size} bytes; "
                        "what was fetched is kept: give the same command again"
                    )
                self.folder.put(path, name, stamp)

    def _models(self, experiment_id: str) -> Iterator[LoggedModel]:
        from mlflow.exceptions import MlflowException

        token = None
        while True:
            try:
                page = self.client.search_logged_models([experiment_id], page_token=token)
            except MlflowException as error:
                if error.error_code == "ENDPOINT_NOT_FOUND":  # a server from before there were logged models
                    return
                raise
            yield from page
            if not (token := page.token):
                return


def with_models(points: Iterable[Metric], known: dict[tuple[str, int, int], list[Where]]) -> list[Metric]:
    """Points with the logged model and the data set that they belong to; a database's history does not say so itself.
    A point that belongs to two models comes twice."""
    from mlflow.entities import Metric

    found = []
    for point in points:
        places = known.get((point.key, point.step, point.timestamp), []) if point.model_id is None else []
        found += [Metric(point.key, point.value, point.timestamp, point.step, *where) for where in places] or [point]
    return found


def of_dataset(found: DatasetInput) -> dict[str, str | None]:
    """Of the data that a run has read: name, digest, and for what."""
    context = next((tag.value for tag in found.tags if tag.key == "mlflow.data.context"), None)
    return {"name": found.dataset.name, "digest": found.dataset.digest, "context": context}


def listed(repository: ArtifactRepository, run_id: str) -> Iterator[FileInfo]:
    """All files of a run, in all folders. UserError for a name that leads out of them."""
    folders: list[str | None] = [None]
    while folders:
        parent = folders.pop()
        for found in repository.list_artifacts(parent):
            inside = found.path.removeprefix(f"{parent}/") if parent else found.path
            if not harmless(inside) or (parent and inside == found.path) or found.path.count("/") > 100:
                raise UserError(
                    f"MLflow run {run_id}: the server names an artifact {found.path[:80]!r}, which is no path inside "
                    "the run; delete it there, or leave this run out"
                )
            if found.is_dir:
                folders.append(found.path)
            else:
                yield found


def harmless(name: str) -> bool:
    """Whether a file or folder of this name lies in its folder."""
    return (
        name not in ("", ".", "..")
        and not re.search(r"[/\\\x00-\x1f]", name)
        and len(name.encode(errors="surrogateescape")) <= 255
    )
