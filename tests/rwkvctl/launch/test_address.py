"""Addresses of clusters: what is wrong with one is said at once, in one line, and nothing is made of the run."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from rwkvctl.base.errors import UserError
from rwkvctl.launch import address

from .job_server import serving

VERSION = (200, {"ray_version": "2.60.0"})


@pytest.fixture
def silent() -> Iterator[str]:
    """A port that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def closed() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


def refused(where: str) -> str:
    with pytest.raises(UserError) as error:
        address.reach(where)
    said = str(error.value)
    assert said.startswith(f"cluster.address {where}: ")
    assert len(said) < 300
    assert "\n" not in said
    return said


def test_nobody_listens():
    assert "no Ray cluster at this address (Connection refused)" in refused(closed())
    assert "no Ray job server at this address (Connection refused)" in refused(f"http://{closed()}")
    assert "no Ray cluster at this address (" in refused("nohost.invalid:6379")


def test_nobody_answers(silent: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(address, "TIMEOUT", 0.3)
    assert "(no answer in time)" in refused(f"http://{silent}")
    assert re.search("something answers|does not answer in time", refused(silent))


@pytest.mark.parametrize(
    "answer", [(404, "nothing here"), (200, "<html>"), (200, {"version": "4"}), (200, []), (0, "")]
)
def test_something_else_answers(answer: tuple[int, object], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(address, "TIMEOUT", 2.0)
    with serving(lambda path: answer) as server:
        assert "no Ray job server at this address" in refused(server.address)
        assert "something answers there that is no Ray cluster" in refused(server.address.removeprefix("http://"))


@pytest.mark.parametrize("token", ["of-another-cluster", None])
def test_the_token_is_wrong_or_missing(token: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.setenv("RAY_AUTH_TOKEN", token or "")
    with serving(lambda path: (401, "Unauthorized")) as server:
        said = refused(server.address)
    assert ("refuses this token" if token else "asks for a token; set RAY_AUTH_TOKEN") in said
    assert not token or token not in said


def test_a_job_server_without_its_scheme():
    with serving(lambda path: VERSION) as server:
        assert f"is a job server; give it as {server.address}" in refused(server.address.removeprefix("http://"))


def test_another_version_of_ray_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(address, "own_version", lambda: "2.58.1")
    with serving(lambda path: VERSION) as server:
        assert address.reach(server.address) == server.address
    assert capsys.readouterr().err == (
        f"note: the cluster at {server.address} runs Ray 2.60.0, this machine has 2.58.1\n"
    )
    with pytest.raises(UserError, match=r"the cluster runs Ray 2\.60\.0 and this machine 2\.58\.1; install ray==2\.60"):
        address.refuse_version("head:6379", "2.60.0")


def test_nothing_is_left_of_a_run(rwkvctl, binary, home: Path):
    """Nor has anything been sent."""
    for where in (closed(), f"http://{closed()}"):
        done = rwkvctl(f"finetune binary --data {binary.root} --address {where}")
        assert (done.code, len(done.err.splitlines())) == (2, 1), done.err
    done = rwkvctl(f"finetune binary --data {binary.root} --address ray://head:10001")
    assert (done.code, "ray://" in done.err, "http://HOST:8265" in done.err) == (2, True, True), done.err
    assert not list(home.glob("runs/*"))
    assert json.loads(rwkvctl("run list --json").out) == []
