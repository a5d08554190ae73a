"""A PostgreSQL of the tests' own on loopback."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from .process_groups import end_group

PATIENCE = 300.0
NOBODY = 65534


@contextmanager
def open_postgres(name: str, password: str) -> Iterator[int]:
    """Its port; user and database are called `name`. It runs as somebody else than root. Skips where it is missing."""
    psycopg = pytest.importorskip("psycopg")
    for program in ("initdb", "postgres"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    as_user: list[str] = []
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("setpriv is not installed, and PostgreSQL does not run as root")
        as_user = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    folder = Path(tempfile.mkdtemp(prefix="pg", dir="/tmp"))  # which that user can reach
    (folder / "password").write_text(password)
    if as_user:
        for path in (folder, folder / "password"):
            os.chown(path, NOBODY, NOBODY)
    data, log = folder / "data", folder / "log"
    options = [f"--username={name}", "--auth=scram-sha-256", f"--pwfile={folder}/password", "--no-sync"]
    subprocess.run([*as_user, "initdb", f"--pgdata={data}", *options], check=True, capture_output=True, cwd=folder)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = int(probe.getsockname()[1])
    command = ["postgres", "-D", str(data), "-p", str(port), "-k", str(folder), "-c", "listen_addresses=127.0.0.1"]
    with log.open("wb") as output:
        server = subprocess.Popen(
            [*as_user, *command], stdout=output, stderr=output, cwd=folder, start_new_session=True
        )
    try:
        connection = connected(psycopg, log, host="127.0.0.1", port=port, user=name, password=password)
        connection.autocommit = True
        connection.execute(f"CREATE DATABASE {name}")
        connection.close()
        yield port
    finally:
        end_group(server)
        shutil.rmtree(folder, ignore_errors=True)


def connected(psycopg: Any, log: Path, **address: Any) -> Any:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return psycopg.connect(dbname="postgres", **address)
        except psycopg.OperationalError:
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
