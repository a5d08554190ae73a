"""What `rwkvctl doctor` says of this machine, with faults that are really there."""

from __future__ import annotations

import base64
import copy
import json
import os
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from rwkvctl.base.lineage import code_identity
from rwkvctl.cli import app
from rwkvctl.launch.doctor import checks, examine, facts

Doctor = Callable[..., tuple[int, dict[str, tuple[str, str]]]]


@pytest.fixture(autouse=True)
def no_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_MODE", "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))


@pytest.fixture
def doctor(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Doctor:
    """Exit code and, by check, state and line."""

    def run(*options: str) -> tuple[int, dict[str, tuple[str, str]]]:
        monkeypatch.setattr(sys, "argv", ["rwkvctl", "doctor", "--json", *options])
        code = 0
        try:
            app.main()
        except SystemExit as end:
            code = int(end.code or 0)
        printed = json.loads(capsys.readouterr().out)
        return code, {one["check"]: (one["state"], one["line"]) for one in printed["checks"]}

    return run


def test_a_laptop_without_anything(home: Path):
    """Nothing is left behind, nothing heavy is imported, and the lines can be read by a person."""
    code = (
        "import sys; from rwkvctl.cli import app; sys.argv = ['rwkvctl', 'doctor']\n"
        "try: app.main()\nexcept SystemExit as end: assert not end.code, end.code\n"
        "print([name for name in ('torch', 'ray', 'mlflow', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    *lines, heavy = done.stdout.splitlines()
    assert heavy == "[]"
    assert [line[9:24].strip() for line in lines] == [
        "cluster", "versions", "storage", "tracking", "data", "gpus", "shared memory", "open files", "disk", "clocks",
        "network", "token",
    ]  # fmt: skip
    assert f"(code {code_identity()[:12]})" in lines[1]
    assert lines[4].startswith(f"warning  data           no prepared data set in {home}/data: rwkvctl data prepare")
    assert list((home / "runs").iterdir()) == []


def test_a_file_where_storage_should_be(home: Path, doctor: Doctor):
    home.mkdir()
    (home / "runs").write_text("")
    code, said = doctor()
    assert code == 1
    line = f"{home}/runs cannot be written here ({home}/runs: File exists): rwkvctl config set storage FOLDER"
    assert said["storage"] == ("problem", line)


@contextmanager
def as_somebody() -> Iterator[None]:
    """Root may write everywhere: as a user who may not."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_storage_that_is_read_only(tmp_path: Path):
    folder = tmp_path / "runs"
    folder.mkdir(mode=0o555)
    with as_somebody():
        problems = facts.attempt(str(folder), "write", ["probe"])
    assert list(problems) == ["probe"]
    assert problems["probe"].endswith(": Permission denied")


def test_a_disk_that_is_full(tmp_path: Path, doctor: Doctor, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(folder)]
    if os.geteuid() or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("only root may mount a small disk")
    try:
        with pytest.raises(OSError, match="No space"):
            (folder / "full").write_bytes(bytes(1 << 20))
        monkeypatch.setenv("RWKVCTL_STORAGE", str(folder))
        code, said = doctor()
    finally:
        subprocess.run(["umount", str(folder)], check=True)
    assert code == 1
    assert said["storage"][1].startswith(f"{folder} cannot be written here (No space left on device)")
    assert said["disk"] == ("problem", f"storage {folder} on this machine has 0.0 GiB left: free some space")


def test_data_sets(tmp_path: Path, doctor: Doctor, monkeypatch: pytest.MonkeyPatch):
    for name in ("acdc", "busi", "not-prepared"):
        (tmp_path / "data" / name).mkdir(parents=True)
    for name in ("acdc", "busi"):
        (tmp_path / "data" / name / "manifest.json").write_text("{}")
    monkeypatch.setenv("RWKVCTL_DATA_ROOT", str(tmp_path / "data"))
    assert doctor()[1]["data"] == ("ok", f"{tmp_path}/data: acdc, busi")


# The tracking server -------------------------------------------------------------------------------------------------


class Server(BaseHTTPRequestHandler):
    """Answers as MLflow's server with accounts does; the slow test asks that one itself."""

    def answer(self, code: int, content: Any) -> None:
        body = content.encode() if isinstance(content, str) else json.dumps(content).encode()
        self.send_response(code)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        if self.path == "/version":
            self.answer(200, "3.17.0")
        elif self.headers.get("Authorization") != "Basic " + base64.b64encode(b"ann:right").decode():
            self.answer(401, "You are not authenticated.")
        else:
            self.answer(404, {"error_code": "RESOURCE_DOES_NOT_EXIST"})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(200 if self.path.endswith("/create") else 403, {"experiment_id": "7"})

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    found = HTTPServer(("127.0.0.1", 0), Server)
    thread = Thread(target=found.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{found.server_port}"
    found.shutdown()
    found.server_close()
    thread.join()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def test_a_tracking_server_that_is_dead_or_refuses_us(server: str, doctor: Doctor, monkeypatch: pytest.MonkeyPatch):
    dead = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", dead)
    code, said = doctor()
    assert code == 1
    what = f"{dead} does not answer ([Errno 111] Connection refused)"
    assert said["tracking"] == ("problem", f"{what}: start it, or: rwkvctl config set tracking_uri URI")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    remedy = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
    assert doctor()[1]["tracking"] == ("problem", f"{server} asks for a user and a password (401): {remedy}")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ann")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong")
    assert doctor()[1]["tracking"] == ("problem", f"{server} does not know this user or password (401): {remedy}")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "right")
    do = "ask its administrator for the right"
    assert doctor()[1]["tracking"] == ("problem", f"{server} does not let this user write (403): {do}")


def test_a_local_database(home: Path, doctor: Doctor, monkeypatch: pytest.MonkeyPatch):
    home.mkdir()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{home}/mlflow.db")
    with closing(sqlite3.connect(home / "mlflow.db", isolation_level=None)) as database:
        database.execute("CREATE TABLE experiments (name)")
        assert doctor()[1]["tracking"] == ("ok", f"{home}/mlflow.db: a local database, can be written")
        database.execute("BEGIN EXCLUSIVE")
        assert doctor()[1]["tracking"][0] == "warning"
    (home / "text.db").write_text("no database" * 100)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{home}/text.db")
    code, said = doctor()
    assert (code, said["tracking"][0]) == (1, "problem")
    assert "file is not a database" in said["tracking"][1]


# The cluster and its token -------------------------------------------------------------------------------------------


def test_a_cluster_that_is_not_there(doctor: Doctor, capsys: pytest.CaptureFixture[str]):
    address = f"127.0.0.1:{free_port()}"
    code, said = doctor("--address", address)
    assert code == 1
    what = f"{address}: does not answer (Connection refused)"
    assert said["cluster"] == ("problem", f"{what}: start it, or: rwkvctl config set address HOST:PORT")


@pytest.mark.slow  # imports Ray, in a process of its own
def test_something_else_at_the_address(server: str, doctor: Doctor):
    """Whatever Ray makes of it, this process lives."""
    code, said = doctor("--address", server, "--seconds", "1")
    assert (code, said["cluster"][0]) == (1, "problem")
    assert len(said["cluster"][1]) < 300


def test_an_address_that_is_none(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(sys, "argv", ["rwkvctl", "doctor", "--address", "nowhere"])
    with pytest.raises(SystemExit) as end:
        app.main()
    assert end.value.code == 2
    said = (
        "error: --address: must be HOST:PORT of a Ray cluster, or http://HOST:8265 of its job server, got 'nowhere'\n"
    )
    assert capsys.readouterr().err == said


def test_tokens(tmp_path: Path, doctor: Doctor, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    code, said = doctor()
    missing = f"RAY_AUTH_MODE=token and no token at {tmp_path}/token: copy the cluster's token there"
    assert (code, said["token"]) == (1, ("problem", missing))
    (tmp_path / "token").write_text("secret-secret")
    (tmp_path / "token").chmod(0o644)
    readable = f"{tmp_path}/token can be read by others: chmod 600 {tmp_path}/token"
    assert doctor()[1]["token"] == ("warning", readable)
    (tmp_path / "token").chmod(0o600)
    assert doctor()[1]["token"] == ("ok", f"RAY_AUTH_MODE=token, {tmp_path}/token")


# What nodes say, compared -------------------------------------------------------------------------------------------


@pytest.fixture
def nodes(tmp_path: Path) -> dict[str, Any]:
    """Three nodes like this machine; tests change what they differ in."""
    own = facts.facts({name: str(tmp_path / name) for name in ("storage", "data_root", "cache_dir")})
    own["network"] |= {"resolves_to": "10.0.0.1", "interface": "eth0", "gloo": None}
    own["data"] = {"names": ["acdc"]}
    return {name: copy.deepcopy(own) for name in ("n1", "n2", "n3")}


def test_versions_that_differ(nodes: dict[str, Any]):
    assert checks.versions(nodes).state == "ok"
    own = nodes["n1"]["code"][:12]
    nodes["n3"]["code"] = "f" * 64
    line = f"the code of rwkvctl on n3 ({'f' * 12}) is not that on n1 ({own}): install the same version on every node"
    assert (checks.versions(nodes).state, checks.versions(nodes).line) == ("problem", line)
    nodes["n3"] |= {"installed": False, "executable": "/usr/bin/python3"}
    assert checks.versions(nodes).line == (
        "rwkvctl is not installed on n3 (/usr/bin/python3): install it there, or put its environment first on the PATH "
        "of `ray start`"
    )
    nodes["n3"]["installed"], nodes["n3"]["code"] = True, nodes["n1"]["code"]
    nodes["n2"]["python"] = nodes["n1"]["python"].rpartition(".")[0] + ".99"
    assert checks.versions(nodes).state == "warning"
    nodes["n2"]["versions"]["torch"] = "1.0"
    assert checks.versions(nodes).line.startswith("torch on n2 is not that on n1 (1.0 and ")


def test_gpus_and_their_driver(nodes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert checks.gpus(nodes, {}).line == "none: jobs run on CPUs"
    tool = tmp_path / "nvidia-smi"
    tool.write_text(
        '#!/bin/sh\nif [ $# = 0 ]; then echo "| Driver Version: 535.1  CUDA Version: 12.2 |"\n'
        'else echo "NVIDIA V100, 535.1"; echo "NVIDIA V100, 535.1"; fi\n'
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert facts.gpus() == {"names": ["NVIDIA V100"] * 2, "driver": "535.1", "cuda": "12.2"}
    for node in nodes.values():
        node |= {"gpus": facts.gpus(), "torch_cuda": "12.9", "nccl": "2.29"}
    fine = checks.gpus(nodes, dict.fromkeys(nodes, 2.0))
    assert fine.state == "ok"
    assert fine.line == "6 x NVIDIA V100, driver 535.1 (CUDA 12.2), torch for CUDA 12.9, NCCL 2.29"
    assert checks.gpus(nodes, {"n1": 2.0, "n2": 0.0, "n3": 2.0}).line.startswith("n2 has 2 GPUs, Ray knows 0: ")
    nodes["n2"]["torch_cuda"] = "13.0"
    what = "driver 535.1 on n2 runs CUDA 12.2, torch needs 13.0: update the driver, or install torch for CUDA 12"
    assert (checks.gpus(nodes, {}).state, checks.gpus(nodes, {}).line) == ("problem", what)
    tool.write_text("#!/bin/sh\necho NVIDIA-SMI has failed; exit 9\n")
    nodes["n2"]["gpus"] = facts.gpus()
    assert checks.gpus(nodes, {}).line.startswith("nvidia-smi fails on n2 (NVIDIA-SMI has failed): ")


def test_network(nodes: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    assert facts.interface_of("127.0.0.1") == "lo"
    assert facts.address_towards("127.0.0.1") == "127.0.0.1"
    nodes["n2"]["network"]["resolves_to"] = "127.0.1.1"
    assert checks.network(nodes, False).state == "ok"
    check = checks.network(nodes, True)
    assert (check.state, check.line) == (
        "warning",
        "the name of n2 resolves to 127.0.1.1, which gloo would take for its own address: GLOO_SOCKET_IFNAME=eth0 in "
        "the environment of `ray start`, or mend /etc/hosts",
    )
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nosuch0")
    nodes["n2"]["network"] = facts.network(None)
    assert checks.network(nodes, True).line.startswith("GLOO_SOCKET_IFNAME=nosuch0 on n2, which has lo")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    nodes["n2"]["network"] = facts.network(None)
    assert checks.network(nodes, True).line.startswith("GLOO_SOCKET_IFNAME=lo on n2 reaches no other node: ")


def test_data_files_and_memory(nodes: dict[str, Any]):
    nodes["n2"]["data"] = {"names": []}
    line = "/data/acdc is not on n2: mount one folder on every node"
    assert (checks.data(nodes, "/data").state, checks.data(nodes, "/data").line) == ("problem", line)
    nodes["n2"]["data"] = {"error": "/data: No such file or directory", "missing": True}
    assert checks.data(nodes, "/data").line.startswith(
        "/data cannot be read on n2 (/data: No such file or directory): "
    )
    nodes["n2"]["files"], nodes["n3"]["shm"]["size"] = [1024, 4096], 64 << 20
    assert checks.open_files(nodes).line == "n2 allows a process 1024 open files: ulimit -n 65536 before `ray start`"
    assert checks.shared_memory(nodes).state == "problem"
    assert checks.shared_memory(nodes).line.startswith(
        "/dev/shm on n3 has 0.1 GiB, loader processes need 1 GiB or more"
    )


def test_clocks_and_storage():
    def node(name: str, **fields: Any) -> dict[str, Any]:
        return {"id": name, "clock": [-0.1, 0.1], "unwritten": None, "unread": {}, **fields}

    late = {"n1": node("n1"), "n2": node("n2", clock=[-90.5, -90.2]), "n3": node("n3", clock=[-1.0, 90.0])}
    check = examine.clocks(late)
    assert (check.state, check.line) == (
        "problem",
        "the clock of n2 is 90 s off: run chrony or systemd-timesyncd there",
    )
    apart = {"n1": node("n1"), "n2": node("n2", unread={"n1": "No such file or directory", None: "No such file"})}
    assert examine.storage("/runs", apart, None).line == (
        "/runs on n2 does not show what n1, this machine writes: it must be one shared folder: mount it at the same "
        "path on every node"
    )
