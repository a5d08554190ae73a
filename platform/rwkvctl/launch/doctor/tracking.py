"""The tracking server or database: is it there, may we write. Without MLflow, whose import takes seconds."""

from __future__ import annotations

import base64
import json
import os
import socket
import sqlite3
import ssl
import time
import urllib.error
import urllib.request
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rwkvctl.base.uris import mask

SECONDS = 5.0
EXPERIMENT = "rwkvctl-doctor"
"""Made on a server to see whether we may write; it stays, with a tag that says when it was written last."""
PORTS = {"postgresql": 5432, "postgres": 5432, "mysql": 3306, "mariadb": 3306}

Found = dict[str, str]
"""`state` ok, warning or problem; `what` is so; what to `do`."""


def look(uri: str) -> Found:
    """What there is at a tracking URI."""
    scheme = uri.partition("://")[0].partition("+")[0].lower()
    if scheme in ("http", "https"):
        return of_server(uri.rstrip("/"))
    if uri.startswith("sqlite:///"):
        return of_sqlite(Path(uri.removeprefix("sqlite:///")))
    if scheme in PORTS:
        return of_database(uri, PORTS[scheme])
    return found("ok", f"{mask(uri)}: not looked at")


def found(state: str, what: str, do: str = "") -> Found:
    return {"state": state, "what": what, "do": do}


# A server ------------------------------------------------------------------------------------------------------------


def of_server(uri: str) -> Found:
    try:
        version = call(f"{uri}/version").strip()[:40]
        write(uri)
    except urllib.error.HTTPError as error:
        return refused(uri, error)
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        what = f"{uri} does not answer ({' '.join(str(reason).split())[:120]})"
        return found("problem", what, "start it, or: rwkvctl config set tracking_uri URI")
    ours = installed("mlflow")
    if ours and version.split(".")[0] != ours.split(".")[0]:
        return found("warning", f"{uri} is MLflow {version}, here it is {ours}", "install the same major version")
    return found("ok", f"{uri}: MLflow {version}, takes what we write")


def installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def refused(uri: str, error: urllib.error.HTTPError) -> Found:
    text = " ".join(error.read(400).decode(errors="replace").split())
    if error.code == 401:
        has = any(os.environ.get(f"MLFLOW_TRACKING_{name}") for name in ("USERNAME", "TOKEN"))
        what = "does not know this user or password" if has else "asks for a user and a password"
        return found("problem", f"{uri} {what} (401)", "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD")
    if error.code == 403 and "ost header" in text:
        return found("problem", f"{uri} refuses this name for itself (403)", "list it in the server's --allowed-hosts")
    if error.code == 403:
        return found("problem", f"{uri} does not let this user write (403)", "ask its administrator for the right")
    return found("problem", f"{uri} answers {error.code}: {text[:120]}", "look into its log")


def write(uri: str) -> None:
    """Note the time on an experiment of our own."""
    api = f"{uri}/api/2.0/mlflow/experiments"
    try:
        number = json.loads(call(f"{api}/get-by-name?experiment_name={EXPERIMENT}"))["experiment"]["experiment_id"]
    except urllib.error.HTTPError as error:
        if error.code != 404:
            raise
        number = json.loads(call(f"{api}/create", {"name": EXPERIMENT}))["experiment_id"]
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    call(f"{api}/set-experiment-tag", {"experiment_id": number, "key": "written", "value": now})


def call(url: str, body: dict[str, Any] | None = None) -> str:
    """GET, or POST of a body, with the credentials that MLflow's client would send."""
    request = urllib.request.Request(url, None if body is None else json.dumps(body).encode())
    request.add_header("Content-Type", "application/json")
    user, token = (os.environ.get(f"MLFLOW_TRACKING_{name}") for name in ("USERNAME", "TOKEN"))
    if user:
        pair = f"{user}:{os.environ.get('MLFLOW_TRACKING_PASSWORD', '')}"
        request.add_header("Authorization", f"Basic {base64.b64encode(pair.encode()).decode()}")
    elif token:
        request.add_header("Authorization", f"Bearer {token}")
    context = None
    if url.startswith("https://"):
        context = ssl.create_default_context(cafile=os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH"))
        if os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("true", "1"):
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with urllib.request.urlopen(request, timeout=SECONDS, context=context) as answer:
        return str(answer.read(1 << 20).decode(errors="replace"))


# Databases -----------------------------------------------------------------------------------------------------------


def of_sqlite(path: Path) -> Found:
    """A file on this machine: made by the first job where there is none."""
    if not path.exists():
        folder = next(parent for parent in path.absolute().parents if parent.exists())
        if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
            return found("problem", f"{path} cannot be made: {folder} cannot be written", "set tracking_uri elsewhere")
        return found("ok", f"{path}: made by the first job")
    try:
        connection = sqlite3.connect(path, timeout=2, isolation_level=None)
        try:
            connection.execute("BEGIN IMMEDIATE")
            tables = connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'experiments'").fetchone()[0]
            connection.execute("ROLLBACK")
        finally:
            connection.close()
    except sqlite3.Error as error:
        busy = "locked" in str(error)
        do = "another program holds it; end it, or use a server" if busy else "set tracking_uri to another file"
        return found("warning" if busy else "problem", f"{path} cannot be written: {error}", do)
    return found("ok", f"{path}: a local database, can be written" + ("" if tables else ", still empty"))


def of_database(uri: str, port: int) -> Found:
    """Whether something listens there; the password is not tried."""
    place = urlsplit(uri)
    host, port = place.hostname or "localhost", place.port or port
    try:
        socket.create_connection((host, port), SECONDS).close()
    except OSError as error:
        what = f"{host}:{port} does not answer ({' '.join(str(error).split())[:120]})"
        return found("problem", what, "start the database, or: rwkvctl config set tracking_uri URI")
    return found("ok", f"{mask(uri)}: the database listens (its password is not tried)")
