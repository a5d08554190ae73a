"""Who is asked whether a tracking server is there, before MLflow's client waits for it."""

from __future__ import annotations

import socket

import pytest

from rwkvctl.runs.mlflow_client import is_silent


@pytest.mark.parametrize("uri", ["postgresql://ann@127.0.0.1:{port}/x", "mysql+pymysql://ann@127.0.0.1:{port}/x"])
def test_a_database_that_is_not_there_is_not_waited_for(uri: str):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert not is_silent(uri.format(port=port))
    assert is_silent(uri.format(port=port))


@pytest.mark.parametrize("uri", ["sqlite:////tmp/mlflow.db", "sqlite://", "postgresql://%2Frun%2Fpostgresql/x"])
def test_a_database_without_a_port_is_not_asked(uri: str):
    assert not is_silent(uri)
