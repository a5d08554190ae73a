"""A client for the tracking server or database that neither blocks for minutes nor trips over a busy SQLite file."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypeVar
from urllib.parse import unquote, urlsplit

from rwkvctl.base import uris
from rwkvctl.base.errors import UserError
from rwkvctl.base.paths import home
from rwkvctl.runs import experiment_view

if TYPE_CHECKING:
    from mlflow import MlflowClient

T = TypeVar("T")
P = ParamSpec("P")

RUN_TAG = "rwkvctl.run"
"""On every MLflow run of ours: the uid of its journal."""

PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
"""Where databases listen whose address does not say."""
SILENT_AFTER = 3.0
"""Seconds without a word after which nobody waits for a tracking server."""

# MLflow's own defaults block a call to a dead server for four minutes, and draw bars across the training's log.
ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}


def connect(tracking_uri: str) -> MlflowClient:
    """A client for the tracking server or database, with short time-outs unless the environment sets others.

    UserError for a URI with a password in it, which would be written down with the run.
    """
    uris.check(tracking_uri, "tracking server")
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    # Otherwise the first command of a new user opens with two lines about tables, and an error of the database, which
    # is raised as well, is preceded by its traceback.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    with _first_touch(tracking_uri):
        # The registry lives with the tracking data; without saying so MLflow asks its global settings.
        return when_free(MlflowClient, tracking_uri, registry_uri=tracking_uri)


def is_silent(tracking_uri: str) -> bool:
    """Whether a tracking server keeps somebody waiting who only asks how it is, or a database is not there at all.
    MLflow's own calls wait far longer: for a database that refuses, more than a minute."""
    if not tracking_uri.startswith(("http://", "https://")):
        return is_unreachable(tracking_uri)
    try:
        urllib.request.urlopen(f"{tracking_uri.rstrip('/')}/health", timeout=SILENT_AFTER).close()
    except (OSError, ValueError) as error:  # of which it has answered with most, or refused to
        return isinstance(getattr(error, "reason", error), TimeoutError)
    return False


def is_unreachable(database: str) -> bool:
    """Whether nobody listens at a database's address; False for one that is a file.

    SQLAlchemy could take the address apart, but another thread may be importing it: two threads that come to a package
    from both ends (`sqlalchemy` and `sqlalchemy.engine`) get it half made.
    """
    address = urlsplit(database)
    try:
        port = address.port or PORTS.get(address.scheme.partition("+")[0])
    except ValueError:  # MLflow says what is wrong with it
        return False
    if address.hostname is None or port is None or unquote(address.hostname).startswith("/"):
        return False
    try:
        socket.create_connection((address.hostname, port), SILENT_AFTER).close()
    except OSError:
        return True
    return False


def experiment_id(client: MlflowClient, tracking_uri: str, name: str) -> str:
    """The experiment of that name, made if it is absent, also when several processes make it at once."""
    from mlflow.exceptions import MlflowException

    found = when_free(client.get_experiment_by_name, name)
    if found is None:
        try:
            location = _artifact_location(tracking_uri, name)
            made = when_free(client.create_experiment, name, artifact_location=location)
            when_free(experiment_view.dress, client, made)
            return made
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        found = client.get_experiment_by_name(name)
    if found is None or found.lifecycle_stage == "deleted":
        raise UserError(
            f"experiment {name!r} of {tracking_uri} is deleted: restore it with `mlflow experiments restore` "
            "or choose another name"
        )
    return found.experiment_id


def find_run(client: MlflowClient, uid: str) -> str | None:
    """The id of the MLflow run that carries a journal's uid, in whatever experiment it is."""
    experiments = [e.experiment_id for e in when_free(client.search_experiments)]
    runs = when_free(client.search_runs, experiments, f"tags.`{RUN_TAG}` = '{uid}'", max_results=1)
    return runs[0].info.run_id if runs else None


def when_free(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call, and again for half a minute while SQLite is busy with another process (trials start at once)."""
    deadline = time.monotonic() + 30.0
    pause = 0.05
    while True:
        try:
            return call(*args, **kwargs)
        except Exception as error:
            if "database is locked" not in str(error) or time.monotonic() > deadline:
                raise
        time.sleep(pause)
        pause = min(2 * pause, 1.0)


def _sqlite_file(tracking_uri: str) -> Path | None:
    return Path(tracking_uri.removeprefix("sqlite:///")) if tracking_uri.startswith("sqlite:///") else None


@contextlib.contextmanager
def _first_touch(tracking_uri: str) -> Iterator[None]:
    """Let one process at a time open a SQLite file: two that both find it empty both make its tables, and one fails."""
    database = _sqlite_file(tracking_uri)
    if database is None:
        yield
        return
    import fcntl

    database.parent.mkdir(parents=True, exist_ok=True)
    with database.with_name(f".{database.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _artifact_location(tracking_uri: str, experiment: str) -> str | None:
    """Where an experiment's files go: beside a SQLite file, else under home; a server decides itself."""
    if tracking_uri.startswith(("http://", "https://")):
        return None
    database = _sqlite_file(tracking_uri)
    root = home() if database is None else database.absolute().parent
    return (root / "artifacts" / (re.sub(r"[^\w\-.]+", "_", experiment).strip(".") or "_")).as_uri()
