"""What a server says of itself, and how it follows its alias."""

from __future__ import annotations

import re
import shutil
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rwkvctl.base.errors import UserError
from rwkvctl.base.paths import cache_dir
from rwkvctl.models import bundle
from rwkvctl.registry.promote import promote
from rwkvctl.registry.register import register
from rwkvctl.runs.journal import Journal
from rwkvctl.runs.sync import Syncer
from rwkvctl.serving.listening import bound
from rwkvctl.serving.room import Room
from rwkvctl.serving.token import check_token, read_token

from .conftest import save_model, served, until
from .test_refusals import png


def test_what_it_says_of_itself(colour_model: Path):
    with served(str(colour_model)) as server:
        assert server.post(("x", png())).status == 200
        assert server.post(("x", b"?")).status == 415
        assert server.ask("GET", "/healthz").json()["status"] == "ok"
        model = server.ask("GET", "/model").json()
        sha = bundle.read_info(colour_model).weights_sha256
        assert (model["weights_sha256"], model["version"]) == (sha, sha[:12])
        assert model["classes"] == ["background", "liver", "tumour"]
        assert model["input"]["kind"] == "colour images"
        assert model["limits"]["upload_mb"] == 512
        reply = server.ask("GET", "/metrics")
        assert reply.headers["content-type"].startswith("text/plain")
        text = reply.body.decode()
        assert 'rwkvctl_requests_total{status="200"} 1.0' in text
        assert 'rwkvctl_requests_total{status="415"} 1.0' in text
        assert 'rwkvctl_request_seconds_count{kind="picture"} 1.0' in text
        assert f'rwkvctl_model{{version="{sha[:12]}",weights="{sha[:12]}"}} 1.0' in text
        from prometheus_client.parser import text_string_to_metric_families

        assert len(list(text_string_to_metric_families(text))) > 5


@pytest.fixture
def two_versions(tracking_uri: str, tmp_path: Path) -> str:
    """`net`, of which version 1 is the champion; version 2 has other weights."""
    for number in (1, 2):
        with Journal(tmp_path / f"run{number}" / "journal.jsonl") as journal:
            journal.event("end", status="FINISHED")
        Syncer(tmp_path / f"run{number}", tracking_uri, "e").push()
        folder = save_model(tmp_path / f"model{number}", seed=number)
        register(tmp_path / f"run{number}", folder, "net", tracking_uri=tracking_uri)
    promote("net", 1, "champion", tracking_uri=tracking_uri)
    return tracking_uri


def test_a_promotion_changes_the_model_and_drops_no_request(two_versions: str, tmp_path: Path):
    fields = {"tracking": {"uri": two_versions}, "storage": str(tmp_path), "poll": 0.1}
    upload, answers, end = png(), [], threading.Event()
    with served("models:/net@champion", **fields) as server:

        def ask() -> None:
            while not end.is_set():
                answers.append(server.post(("x", upload)))

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        try:
            until(lambda: len(answers) > 5)
            promote("net", 2, "champion", tracking_uri=two_versions)
            until(lambda: answers[-1].headers["x-model-version"] == "2")
            more = len(answers) + 5
            until(lambda: len(answers) > more)
        finally:
            end.set()
            for thread in threads:
                thread.join()
        assert {reply.status for reply in answers} == {200}
        masks = {}
        for reply in answers:
            masks.setdefault(reply.headers["x-model-version"], set()).add(reply.body)
        assert set(masks) == {"1", "2"}
        assert all(len(each) == 1 for each in masks.values()), "a version's mask is of its weights alone"
        assert masks["1"] != masks["2"]
        until(lambda: server.ask("GET", "/healthz").json()["version"] == "2")

        # A version that cannot be loaded leaves the one that is there.
        kept = (cache_dir() / "models").glob("*/weights.safetensors")
        [found] = [path for path in kept if not is_current(path, server)]
        found.write_bytes(b"damaged")
        promote("net", 1, "champion", tracking_uri=two_versions)
        until(lambda: "is not the" in server.replica.follower.problem)
        assert server.post(("x", upload)).headers["x-model-version"] == "2"
        shutil.rmtree(found.parent)
        until(lambda: server.post(("x", upload)).headers["x-model-version"] == "1")
        assert server.replica.follower.problem == ""


def is_current(path: Path, server) -> bool:
    return bundle.read_info(path.parent).weights_sha256 == server.replica.follower.served.segmenter.info.weights_sha256


def test_who_listens_for_others_needs_a_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for host in ("127.0.0.1", "localhost", "::1", "127.1.2.3"):
        check_token(None, host)
    for host in ("0.0.0.0", "::", "10.0.0.1", "server.lab", ""):
        with pytest.raises(UserError, match=rf"^--host {re.escape(host)}: others reach this address"):
            check_token(None, host)
        check_token("x" * 16, host)
    for weak in ("", "x" * 15, "ünprintable-token", "with a space in it", "two\nlines-of-token"):
        with pytest.raises(UserError, match=r"^the token must have 16 printable"):
            check_token(weak, "127.0.0.1")
    (tmp_path / "token").write_text("from-the-file-0123456789\n")
    monkeypatch.setenv("RWKVCTL_SERVE_TOKEN", "from-the-environment")
    assert read_token(str(tmp_path / "token")) == "from-the-file-0123456789"
    assert read_token(None) == "from-the-environment"
    with pytest.raises(UserError, match=r"^--token-file .*none: cannot be read \(No such file"):
        read_token(str(tmp_path / "none"))


def test_room_is_given_in_the_order_of_coming():
    room, order, threads = Room(10), [], []

    def work(name: str, size: int) -> None:
        with room.taken(size, lambda: None):
            order.append(name)

    with room.taken(6, lambda: None):
        for name, size in (("large", 99), ("small", 1)):
            threads.append(threading.Thread(target=work, args=(name, size)))
            threads[-1].start()
            until(lambda: len(room._line) == len(threads))
    for thread in threads:
        thread.join()
    assert order == ["large", "small"]
    assert room.free == 10


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--host", "0.0.0.0"], "error: --host 0.0.0.0: others reach this address, and there is no token; give "),
        (["--token-file", "none"], "error: --token-file none: cannot be read (No such file or directory)"),
        (["--set", "limits.voxel=3"], "error: serve: limits.voxel: unknown field (did you mean voxels?)"),
        (["--set", "at_once=0"], "error: serve: at_once: input should be greater than or equal to 1, got 0"),
    ],
)
def test_what_is_refused_before_anything_starts(colour_model: Path, rwkvctl: Any, words: list[str], said: str):
    result = rwkvctl(["serve", str(colour_model), *words])
    assert (result.code, result.out) == (2, "")
    [line] = result.err.splitlines()
    assert line.startswith(said)


def test_a_model_that_is_none(rwkvctl: Any, classifier_folder: Callable[[str], Path]):
    result = rwkvctl(["serve", "nothing"])
    assert (result.code, result.err.startswith("error: run 'nothing' is not in ")) == (2, True)
    result = rwkvctl(["serve", str(classifier_folder("rwkv_unet_enc_t"))])
    assert (result.code, "is a pretrained classifier, which makes no masks" in result.err) == (2, True)


def test_a_port_that_is_taken():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            UserError, match=rf"^--host 127.0.0.1 --port {port}: cannot be listened on \(Address already"
        ):
            bound("127.0.0.1", port)
