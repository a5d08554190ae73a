"""From a run's journal to one MLflow run: exactly once, whenever the server is there.

`mlflow.json` in the run directory says which MLflow run it is and up to which byte the journal has been sent. It is
written after the sending, so a crash in between sends some lines again; MLflow knows them by (key, step, time, value)
and keeps one. The MLflow run carries the journal's uid as a tag, so it is found again even when the crash came between
its creation and the first `mlflow.json`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from rwkvctl.base.errors import JobFailedError, UserError
from rwkvctl.base.files import write_json
from rwkvctl.base.uris import mask
from rwkvctl.runs import journal
from rwkvctl.runs.data_inputs import DataInput
from rwkvctl.runs.mlflow_client import RUN_TAG, connect, experiment_id, find_run, is_silent, when_free

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger("rwkvctl")
T = TypeVar("T")
P = ParamSpec("P")

STATE_NAME = "mlflow.json"
PARENT_TAG = "rwkvctl.parent"
CHUNK_LINES = 2000  # Journal lines between two writes of the offset.
SHORTLY = 1.0
"""Seconds that are waited for a server without a thought; after these it is asked whether it is there at all."""


@dataclass
class Sent:
    """What a push has sent; `run_id` is the MLflow run that it went to."""

    run_id: str = ""
    metrics: int = 0
    params: int = 0
    tags: int = 0
    artifacts: int = 0
    status: str = ""


@dataclass
class _Pending:
    """The entries of a stretch of the journal, sorted by how they are sent."""

    metrics: list[tuple[str, float, int, int]] = field(default_factory=list)  # key, value, time in ms, step
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    data: list[DataInput] = field(default_factory=list)
    artifacts: dict[tuple[str, str], None] = field(default_factory=dict)  # (path, artifact_path), in order
    status: str = ""
    ended: int = 0


class Syncer:
    """Sends the journal of one run directory to its MLflow run.

    Args:
        run_dir: where the journal is, or will be.
        tracking_uri: an MLflow server or database.
        experiment: its name; made if it is absent.
        parent: of a trial: the MLflow run id of the sweep, or its run directory. A journal tag `rwkvctl.parent`
            with the uid of the parent's journal says the same for later syncs.
    """

    def __init__(
        self,
        run_dir: str | os.PathLike[str],
        tracking_uri: str,
        experiment: str,
        *,
        parent: str | os.PathLike[str] | None = None,
    ):
        self.run_dir = Path(run_dir).absolute()
        self.tracking_uri = tracking_uri
        self.experiment = experiment
        self.parent = parent
        self._journal = self.run_dir / journal.JOURNAL_NAME
        self._pushing = threading.Lock()
        self._client: MlflowClient | None = None
        self._state: dict[str, Any] = {}
        self._stop, self._wake = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self._turn = threading.Condition()
        self._turns = self._failures = 0
        self._tasks: dict[str, Callable[[], Any]] = {}
        self.outcomes: dict[str, Any] = {}
        """What the tasks that were given to `do` have returned, by name."""
        self.reason = ""
        """Why the last turn of the background thread failed, in a line."""

    @property
    def run_id(self) -> str | None:
        """The MLflow run's id, once there is one."""
        return self._state.get("run_id")

    def push(self, *, from_start: bool = False) -> Sent:
        """Send all that the journal has and MLflow has not, or the whole journal again `from_start`.

        Raises what MLflow raises; the next call goes on from where this one came to.
        """
        with self._pushing:
            sent = Sent()
            if not self._journal.exists():
                return sent
            _to_disk(self._journal)  # A line that a power cut takes back must not have been sent.
            self._open_run()
            if from_start:
                self._save(offset=0, has_parent=False)
            sent.run_id = self._state["run_id"]
            known = self._history() if self._state["offset"] == 0 else set()
            while True:
                entries, offset = journal.read(self._journal, self._state["offset"], CHUNK_LINES)
                if not entries:
                    return sent
                self._send(_sort(entries), known, sent)
                self._save(offset=offset)

    def start(self, interval: float = 5.0, delay: float = 0.0) -> None:
        """Push every `interval` seconds in the background, first after `delay`; failures are one warning, then it
        tries again."""
        _running[self.run_dir] = self
        self._thread = threading.Thread(target=self._run, args=(interval, delay), name="mlflow-sync", daemon=True)
        self._thread.start()

    def settle(self, timeout: float) -> None:
        """Wait for the first turn of the background thread, well or not, but no longer than `timeout` seconds."""
        with self._turn:
            self._turn.wait_for(lambda: self._turns > 0, timeout)

    def do(self, name: str, task: Callable[[], Any], timeout: float = 600.0) -> bool:
        """Have the background thread do `task` once all is sent, and again after every later push until it succeeds.

        Waits for its `outcomes[name]`, but not for a server that does not answer: then False, `reason` says why, and
        the thread goes on trying until the syncer is closed.
        """
        self._tasks[name] = task
        self._wake.set()
        for patience in (SHORTLY, timeout):
            with self._turn:
                if self._turn.wait_for(lambda: name in self.outcomes or self._failures > 0, patience):
                    break
            if is_silent(self.tracking_uri):
                self.reason = "it does not answer"
                break
        return name in self.outcomes

    def close(self, timeout: float = 30.0) -> bool:
        """Push a last time and stop, within `timeout` seconds, and sooner where the server is silent; says whether
        MLflow has all that the journal has."""
        self._stop.set()
        self._wake.set()
        if self._thread is None:
            self.start()
        assert self._thread is not None
        self._thread.join(SHORTLY)
        if self._thread.is_alive() and not is_silent(self.tracking_uri):
            self._thread.join(timeout)
        _running.pop(self.run_dir, None)
        if self._all_sent():
            return True
        log.warning("MLflow does not have all of %s yet: run `rwkvctl sync %s` later", self._journal, self.run_dir)
        return False

    def _run(self, interval: float, delay: float) -> None:
        down = False
        while True:
            self._wake.wait(min(interval * 2**self._failures, max(interval, 60.0)) if self._turns else delay)
            self._wake.clear()
            last, reason = self._stop.is_set(), ""
            try:
                self.push()
                if down:
                    log.warning("MLflow at %s is back: all metrics have been sent", mask(self.tracking_uri))
                down = False
                reason = self._do_tasks()
            except ModuleNotFoundError as error:
                log.warning("metrics stay in %s: %s", self._journal, error)
                self._end_turn(str(error))
                return
            except Exception as error:  # Whatever a server can do wrong must not reach the training.
                reason = first_line(error)
                if not down:
                    text = "MLflow at %s: %s; metrics are kept in the journal"
                    log.warning(text, mask(self.tracking_uri), reason)
                down = True
            self._end_turn(reason)
            if last:
                return

    def _end_turn(self, reason: str) -> None:
        with self._turn:
            self._failures = min(self._failures + 1, 10) if reason else 0
            self.reason = reason
            self._turns += 1
            self._turn.notify_all()

    def _do_tasks(self) -> str:
        """Do what waits; returns why the last of those that failed did."""
        reason = ""
        for name in list(self._tasks):
            try:
                self.outcomes[name] = self._tasks[name]()
                del self._tasks[name]
            except Exception as error:  # as above; it is tried again after the next push
                reason = first_line(error)
        return reason

    def _all_sent(self) -> bool:
        if not self._journal.exists():
            return True
        return bool(self._state) and self._state["offset"] >= self._journal.stat().st_size

    def _open_run(self) -> None:
        """Know the MLflow run: from memory, from mlflow.json, by its tag, or by making it."""
        if self._client is None:
            self._client = connect(self.tracking_uri)
        if self._state:
            return
        uid = journal.run_uid(self._journal)
        stored = self._load(uid)
        if stored is None or not self._usable(stored["run_id"]):
            experiment = experiment_id(self._client, self.tracking_uri, self.experiment)
            run_id = find_run(self._client, uid) or self._create_run(experiment, uid)
            stored = {"tracking_uri": self.tracking_uri, "uid": uid, "run_id": run_id, "offset": 0}
        if "experiment_id" not in stored:
            stored["experiment_id"] = self._client.get_run(stored["run_id"]).info.experiment_id
        if stored["offset"] > self._journal.stat().st_size:
            stored["offset"] = 0
        self._state = stored
        self._save()

    def _load(self, uid: str) -> dict[str, Any] | None:
        try:
            stored = json.loads((self.run_dir / STATE_NAME).read_text())
        except (FileNotFoundError, ValueError):
            return None
        same = stored.get("uid") == uid and stored.get("tracking_uri") == self.tracking_uri
        return stored if same else None

    def _save(self, **changes: Any) -> None:
        self._state |= changes
        write_json(self.run_dir / STATE_NAME, self._state)

    def _usable(self, run_id: str) -> bool:
        """Whether the MLflow run of mlflow.json still exists; False sends everything to a new one."""
        from mlflow.exceptions import MlflowException

        assert self._client is not None
        try:
            run = self._client.get_run(run_id)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise
        if run.info.lifecycle_stage == "deleted":
            raise UserError(f"MLflow run {run_id} is deleted: `mlflow runs restore --run-id {run_id}` brings it back")
        return True

    def _history(self) -> set[tuple[str, int, int]]:
        """(key, time, step) of every metric that the MLflow run has: reading them is far faster than sending twice."""
        assert self._client is not None
        client, run_id = self._client, self._state["run_id"]
        keys = client.get_run(run_id).data.metrics
        return {(key, m.timestamp, m.step) for key in keys for m in client.get_metric_history(run_id, key)}

    def _create_run(self, experiment: str, uid: str) -> str:
        assert self._client is not None
        [first], _ = journal.read(self._journal, limit=1)
        tags, name = {RUN_TAG: uid}, self.run_dir.name
        created = when_free(self._client.create_run, experiment, start_time=first["t"], tags=tags, run_name=name)
        return created.info.run_id

    def _send(self, pending: _Pending, known: set[tuple[str, int, int]], sent: Sent) -> None:
        from mlflow.entities import Metric, Param, RunTag

        assert self._client is not None
        client, run_id = self._client, self._state["run_id"]
        self._add_parent(pending)
        metrics = [Metric(k, v, t, step) for k, v, t, step in pending.metrics if (k, t, step) not in known]
        params = [Param(key, value[:6000]) for key, value in pending.params.items()]
        tags = [RunTag(key, value[:8000]) for key, value in pending.tags.items()]
        for start in range(0, len(tags), 100):
            when_free(client.log_batch, run_id, tags=tags[start : start + 100])
        for start in range(0, len(params), 100):
            when_free(client.log_batch, run_id, params=params[start : start + 100])
        for start in range(0, len(metrics), 1000):
            when_free(client.log_batch, run_id, metrics=metrics[start : start + 1000])
        if pending.data:
            when_free(client.log_inputs, run_id, [data.as_input() for data in pending.data])
        for path, artifact_path in pending.artifacts:
            self._upload(path, artifact_path)
        self._set_status(pending)
        sent.metrics += len(metrics)
        sent.params += len(params)
        sent.tags += len(tags)
        sent.artifacts += len(pending.artifacts)
        sent.status = pending.status or sent.status

    def _add_parent(self, pending: _Pending) -> None:
        """Put a trial under its sweep, as soon as the sweep's MLflow run exists."""
        assert self._client is not None
        if uid := pending.tags.get(PARENT_TAG):
            self._state["parent_uid"] = uid
        if self._state.get("has_parent"):
            return
        run_id = self._parent_run(self._client)
        if run_id:
            pending.tags["mlflow.parentRunId"] = run_id
            self._state["has_parent"] = True

    def _parent_run(self, client: MlflowClient) -> str | None:
        if self.parent is not None:
            parent_journal = Path(self.parent) / journal.JOURNAL_NAME
            if parent_journal.exists():
                return find_run(client, journal.run_uid(parent_journal))
            return None if parent_journal.parent.is_dir() else str(self.parent)
        uid = self._state.get("parent_uid")
        return find_run(client, uid) if uid else None

    def _upload(self, path: str, artifact_path: str) -> None:
        assert self._client is not None
        full, run_id = self.run_dir / path, self._state["run_id"]
        if full.is_dir():
            self._client.log_artifacts(run_id, str(full), artifact_path or None)
        elif full.exists():
            self._client.log_artifact(run_id, str(full), artifact_path or None)
        else:
            log.warning("artifact %s of %s no longer exists and was not sent", path, self.run_dir)

    def _set_status(self, pending: _Pending) -> None:
        assert self._client is not None
        run_id = self._state["run_id"]
        if pending.status == "RUNNING":
            self._client.update_run(run_id, status="RUNNING")
        elif pending.status:
            self._client.set_terminated(run_id, pending.status, end_time=pending.ended)


def sync_run(run_dir: str | os.PathLike[str], tracking_uri: str, experiment: str = "rwkvctl") -> Sent:
    """Go through the whole journal of a run and send what MLflow lacks; returns how much that was.

    Raises:
        UserError: there is no journal in `run_dir`.
        JobFailedError: MLflow could not take it, for whatever reason; nothing is lost.
    """
    directory = Path(run_dir)
    if not (directory / journal.JOURNAL_NAME).exists():
        raise UserError(f"{directory}: no {journal.JOURNAL_NAME} here: name the directory of a run")
    with or_failed(directory.name, tracking_uri):
        return Syncer(directory, tracking_uri, experiment).push(from_start=True)


@contextlib.contextmanager
def or_failed(run: str, tracking_uri: str) -> Iterator[None]:
    """Whatever MLflow raises in the block as JobFailedError in one line; UserError stays what it is."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise JobFailedError(
            f"run {run}: MLflow at {mask(tracking_uri)[:80]} did not accept it ({first_line(error)}); nothing is lost: "
            "try again, or give another server with --to"
        ) from error


_running: dict[Path, Syncer] = {}


def running(run_dir: str | os.PathLike[str]) -> Syncer | None:
    """The syncer of this process that sends a run's journal in the background, if one does."""
    return _running.get(Path(run_dir).absolute())


def _sort(entries: list[dict[str, Any]]) -> _Pending:
    pending = _Pending()
    for entry in entries:
        kind = entry["kind"]
        if kind == "metrics":
            pending.metrics += [(_key(k), v, entry["t"], entry["step"]) for k, v in entry["values"].items()]
        elif kind == "params":
            pending.params |= {_key(k): str(v) for k, v in entry["values"].items()}
        elif kind == "tags":
            pending.tags |= {_key(k): v for k, v in entry["values"].items()}
        elif kind == "data":
            pending.data.append(journal.data_of(entry))
        elif kind == "artifact":
            pending.artifacts[entry["path"], entry["artifact_path"]] = None
        elif kind == "event" and entry["event"] == "start":
            pending.status = "RUNNING"
        elif kind == "event" and entry["event"] == "end":
            status = entry.get("status", "FINISHED")
            pending.status = status if status in ("FINISHED", "FAILED", "KILLED") else "FAILED"
            pending.ended = entry["t"]
    return pending


def _key(name: str) -> str:
    """A name that MLflow takes: one that it refuses would hold up the whole journal."""
    parts = re.sub(r"[^0-9A-Za-z_\-. :/]", "_", name).split("/")
    return "/".join(part for part in parts if part.strip("."))[:250] or "_"


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # Some file systems sync only what is open for writing.
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


CAUSES = ("timed out", "Connection refused", "Name or service not known", "Temporary failure in name resolution")
"""What matters of a connection's error, which urllib3 puts behind 200 characters of addresses."""


REFUSALS = {
    "Invalid Host header": "403, it does not answer to this name: add it to the server's MLFLOW_SERVER_ALLOWED_HOSTS",
    "error code 401": "401, wrong user or password: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
    "error code 403": "403, this user has no permission",
}
"""What a server says that lets nobody in, as MLflow's client words it, and what it means."""


def first_line(error: Exception) -> str:
    """What an error says, short, in one line and without secrets."""
    text = mask(" ".join(str(error).split()))
    for sign, meaning in REFUSALS.items():
        if sign in text:
            return meaning
    cause = next((cause for cause in CAUSES if cause in text), None)
    return cause.lower() if cause and "HTTPConnectionPool" in text else text[:150] or type(error).__name__
