"""No secret of a job's environment is anywhere in what it leaves: searched byte by byte after a whole job."""

from __future__ import annotations

import base64
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .conftest import Jobs, mlflow_runs

PASSWORD, KEY, DATABASE_PASSWORD = (
    "hunter2-of-mlflow",
    "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    "hunter2-of-postgres",
)
SECRETS = (PASSWORD, KEY, DATABASE_PASSWORD)
LOGIN = base64.b64encode(f"ann:{PASSWORD}".encode()).decode()


@pytest.fixture
def server(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """host:port of MLflow's own server, which asks for a password; it keeps everything below `tmp_path`."""
    database = f"sqlite:///{home / 'mlflow.db'}"
    monkeypatch.setenv("_MLFLOW_SERVER_FILE_STORE", database)
    monkeypatch.setenv("_MLFLOW_SERVER_REGISTRY_STORE", database)
    monkeypatch.setenv("_MLFLOW_SERVER_ARTIFACT_ROOT", "mlflow-artifacts:/")
    monkeypatch.setenv("_MLFLOW_SERVER_ARTIFACT_DESTINATION", str(tmp_path / "served"))
    monkeypatch.setenv("_MLFLOW_SERVER_SERVE_ARTIFACTS", "true")
    # The server's own accounts take seconds to import, which a search does; here `guarded` asks for the password.
    monkeypatch.setitem(sys.modules, "mlflow.server.auth", None)
    from mlflow.server import app, handlers
    from werkzeug.serving import make_server

    for store in ("_tracking_store", "_model_registry_store", "_artifact_repo"):
        monkeypatch.setattr(handlers, store, None)

    def guarded(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        if environ.get("HTTP_AUTHORIZATION") != f"Basic {LOGIN}":
            start("401 Unauthorized", [("WWW-Authenticate", "Basic")])
            return [b"who are you?"]
        return app(environ, start)

    made = make_server("127.0.0.1", 0, guarded, threaded=True)
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield f"127.0.0.1:{made.server_port}"
    made.shutdown()
    thread.join()
    made.server_close()


@pytest.mark.parametrize("where", ["in variables", "in the URI"])
def test_a_job_leaves_no_secret_anywhere(
    jobs: Jobs,
    server: str,
    where: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
):
    login = {"MLFLOW_TRACKING_USERNAME": "ann", "MLFLOW_TRACKING_PASSWORD": PASSWORD}
    for name, value in login.items():
        monkeypatch.setenv(name, value)  # in either case, so that it is restored
        if where == "in the URI":
            monkeypatch.delenv(name)
    user = "" if where == "in variables" else f"ann:{PASSWORD}@"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://{user}{server}")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", KEY)
    monkeypatch.setenv("PGPASSWORD", DATABASE_PASSWORD)
    assert jobs.run("finetune", "run", "train.epochs=1", "train.epoch_steps=1", "tracking.register_as=net") == 0
    printed = capfd.readouterr()
    [run] = mlflow_runs(jobs.home)
    assert run.info.status == "FINISHED", "it was let in"
    assert run.info.artifact_uri.startswith("mlflow-artifacts:")
    assert "registered models:/net/1" in printed.out + printed.err
    assert list((tmp_path / "served").rglob("weights.safetensors"))
    assert leaks(tmp_path, printed.out + printed.err) == []


def leaks(folder: Path, text: str) -> list[str]:
    """The files below a folder that have a secret in them, as it is or as it goes over the wire; the screen too."""
    sought = [secret.encode() for secret in (*SECRETS, LOGIN)]
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 10
    found = [str(path) for path in files if any(secret in path.read_bytes() for secret in sought)]
    return found + [text for secret in sought if secret in text.encode()]
