"""Who is asked whether a tracking server is there, before MLflow's client waits for it."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

from rwkvctl.runs.mlflow_client import is_silent


@pytest.mark.parametrize("uri", ["postgresql://ann@127.0.0.1:{port}/x", "mysql+pymysql://ann@127.0.0.1:{port}/x"])
def test_a_database_that_is_not_there_is_not_waited_for(uri: str):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert not is_silent(uri.format(port=port))
    assert is_silent(uri.format(port=port))


@pytest.mark.parametrize(
    "uri",
    ["sqlite:////tmp/mlflow.db", "sqlite://", "postgresql://%2Frun%2Fpostgresql/x", "postgresql://ann@h:port/x", "x"],
)
def test_a_database_without_a_port_is_not_asked(uri: str):
    assert not is_silent(uri)


def test_asking_imports_nothing_that_another_thread_may_be_importing():
    """A run asks while its syncer imports MLflow, and with it SQLAlchemy."""
    code = (
        "import sys; from rwkvctl.runs.mlflow_client import is_silent; is_silent('sqlite:////tmp/mlflow.db');"
        "sys.exit('sqlalchemy' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
