"""What is in the journal is in MLflow, once, whatever broke on the way. MLflow here is real, on SQLite."""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from rwkvctl.base.errors import JobFailedError, UserError
from rwkvctl.runs import mlflow_client, sync
from rwkvctl.runs.journal import Journal
from rwkvctl.runs.sync import Syncer, running, sync_run


def journal_of(run_dir: Path, steps: range = range(5)) -> Journal:
    journal = Journal(run_dir / "journal.jsonl")
    journal.event("start")
    journal.params({"lr": 1e-3, "model.name": "rwkv_unet_t"})
    journal.tags({"rwkvctl.job": "finetune", "mlflow.source.git.commit": "1f3c"})
    for step in steps:
        journal.metrics({"train/loss": 1 / (1 + step), "train/lr": 1e-3}, step)
    return journal


def history(uri: str, run_id: str, key: str = "train/loss") -> list[tuple[int, float]]:
    found = [(metric.step, metric.value) for metric in MlflowClient(uri).get_metric_history(run_id, key)]
    assert len({step for step, _ in found}) == len(found), "a step was logged twice"
    return sorted(found)


def runs(uri: str) -> list:
    client = MlflowClient(uri)
    return client.search_runs([e.experiment_id for e in client.search_experiments()])


def expected(count: int) -> list[tuple[int, float]]:
    return [(step, 1 / (1 + step)) for step in range(count)]


def test_all_kinds_of_entries_arrive(tracking_uri: str, tmp_path: Path) -> None:
    run_dir = tmp_path / "run-a"
    with journal_of(run_dir) as journal:
        (run_dir / "cases.csv").write_text("case,dsc\n")
        (run_dir / "overlays").mkdir()
        (run_dir / "overlays" / "0.png").write_bytes(b"png")
        journal.artifact(run_dir / "cases.csv")
        journal.artifact(run_dir / "overlays", "overlays")
        journal.metrics({"odd": math.nan, "up": math.inf}, 0)
        journal.event("end", status="FINISHED")
    syncer = Syncer(run_dir, tracking_uri, "clinicdb")
    sent = syncer.push()
    assert (sent.metrics, sent.params, sent.artifacts, sent.status) == (12, 2, 2, "FINISHED")
    client = MlflowClient(tracking_uri)
    run = client.get_run(sent.run_id)
    assert client.get_experiment(run.info.experiment_id).name == "clinicdb"
    assert run.data.params == {"lr": "0.001", "model.name": "rwkv_unet_t"}
    assert run.data.tags["mlflow.runName"] == "run-a"
    assert run.data.tags["mlflow.source.git.commit"] == "1f3c"
    assert run.info.status == "FINISHED"
    assert run.info.end_time >= run.info.start_time
    assert math.isnan(run.data.metrics["odd"])
    assert run.data.metrics["up"] > 1e308
    assert history(tracking_uri, sent.run_id) == expected(5)
    assert [f.path for f in client.list_artifacts(sent.run_id)] == ["cases.csv", "overlays"]
    assert [f.path for f in client.list_artifacts(sent.run_id, "overlays")] == ["overlays/0.png"]
    home = tmp_path / "home"
    assert run.info.artifact_uri.startswith((home / "artifacts" / "clinicdb").as_uri())
    assert syncer.push() == sync.Sent(sent.run_id)


def test_resumed_run_stays_one_run_and_runs_again(tracking_uri: str, tmp_path: Path) -> None:
    with journal_of(tmp_path / "run") as journal:
        journal.event("end", status="FAILED")
    first = Syncer(tmp_path / "run", tracking_uri, "e").push()
    assert runs(tracking_uri)[0].info.status == "FAILED"
    journal = journal_of(tmp_path / "run", range(3, 9))
    second = Syncer(tmp_path / "run", tracking_uri, "e").push()
    assert second.run_id == first.run_id
    assert runs(tracking_uri)[0].info.status == "RUNNING"
    journal.event("end", status="odd")
    journal.close()
    Syncer(tmp_path / "run", tracking_uri, "e").push()
    assert runs(tracking_uri)[0].info.status == "FAILED"
    assert history(tracking_uri, first.run_id) == expected(9)


@pytest.mark.parametrize("lost", ["mlflow.json is gone", "offset is old", "offset is beyond the end"])
def test_lost_or_stale_state_makes_no_second_run(tracking_uri: str, tmp_path: Path, lost: str) -> None:
    journal_of(tmp_path / "run").close()
    first = Syncer(tmp_path / "run", tracking_uri, "e").push()
    state = tmp_path / "run" / "mlflow.json"
    if lost == "mlflow.json is gone":
        state.unlink()
    else:
        offset = 0 if lost == "offset is old" else 10**6
        state.write_text(json.dumps(json.loads(state.read_text()) | {"offset": offset}))
    assert Syncer(tmp_path / "run", tracking_uri, "e").push().run_id == first.run_id
    assert len(runs(tracking_uri)) == 1
    assert history(tracking_uri, first.run_id) == expected(5)


@pytest.mark.parametrize("broken", [1, 2, 3, 4, 5])
def test_interrupted_between_any_two_calls_it_still_ends_whole_and_single(
    tracking_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: int
) -> None:
    """The n-th change at the server happens, but its answer never arrives."""
    monkeypatch.setattr(sync, "CHUNK_LINES", 4)
    with journal_of(tmp_path / "run", range(6)) as journal:
        journal.event("end", status="FINISHED")
    calls = 0

    def cut(original):
        def call(*args, **kwargs):
            nonlocal calls
            answer = original(*args, **kwargs)
            calls += 1
            if calls == broken:
                raise ConnectionError("cut")
            return answer

        return call

    with monkeypatch.context() as patch:
        for name in ("create_run", "log_batch", "set_terminated", "create_experiment"):
            patch.setattr(MlflowClient, name, cut(getattr(MlflowClient, name)))
        with pytest.raises(ConnectionError):
            Syncer(tmp_path / "run", tracking_uri, "e").push()
    sent = Syncer(tmp_path / "run", tracking_uri, "e").push()
    [run] = runs(tracking_uri)
    assert run.info.run_id == sent.run_id
    assert run.info.status == "FINISHED"
    assert history(tracking_uri, sent.run_id) == expected(6)


def test_replay_of_everything_changes_nothing(tracking_uri: str, tmp_path: Path) -> None:
    with journal_of(tmp_path / "run") as journal:
        journal.metrics({"odd": math.nan}, 3)
        journal.event("end", status="FINISHED")
    first = sync_run(tmp_path / "run", tracking_uri)
    again = sync_run(tmp_path / "run", tracking_uri)
    assert (first.metrics, again.metrics, again.run_id) == (11, 0, first.run_id)
    assert history(tracking_uri, first.run_id) == expected(5)
    assert len(history(tracking_uri, first.run_id, "odd")) == 1


def test_replay_sends_what_is_missing(tracking_uri: str, tmp_path: Path) -> None:
    """The journal goes on after the last sync, and mlflow.json claims that all of it was sent."""
    with journal_of(tmp_path / "run") as journal:
        sync_run(tmp_path / "run", tracking_uri)
        journal.metrics({"train/loss": 1 / 6}, 5)
    state = tmp_path / "run" / "mlflow.json"
    size = (tmp_path / "run" / "journal.jsonl").stat().st_size
    state.write_text(json.dumps(json.loads(state.read_text()) | {"offset": size}))
    sent = sync_run(tmp_path / "run", tracking_uri)
    assert sent.metrics == 1
    assert history(tracking_uri, sent.run_id) == expected(6)


def test_sync_of_what_is_no_run(tracking_uri: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="name the directory of a run"):
        sync_run(tmp_path, tracking_uri)


def test_other_database_gets_its_own_run(tracking_uri: str, migrated_database: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copy(migrated_database, tmp_path / "second.db")
    second = f"sqlite:///{tmp_path / 'second.db'}"
    journal_of(tmp_path / "run").close()
    one = sync_run(tmp_path / "run", tracking_uri)
    two = sync_run(tmp_path / "run", second)
    back = Syncer(tmp_path / "run", tracking_uri, "e").push()
    assert back.run_id == one.run_id != two.run_id
    assert history(tracking_uri, one.run_id) == history(second, two.run_id) == expected(5)


def test_deleted_run_is_named(tracking_uri: str, tmp_path: Path) -> None:
    journal_of(tmp_path / "run").close()
    sent = Syncer(tmp_path / "run", tracking_uri, "e").push()
    MlflowClient(tracking_uri).delete_run(sent.run_id)
    with pytest.raises(UserError, match=f"mlflow runs restore --run-id {sent.run_id}"):
        Syncer(tmp_path / "run", tracking_uri, "e").push()


def test_deleted_experiment_is_named(tracking_uri: str, tmp_path: Path) -> None:
    journal_of(tmp_path / "run").close()
    client = MlflowClient(tracking_uri)
    client.delete_experiment(client.create_experiment("e"))
    with pytest.raises(UserError, match=r"experiment 'e' .* is deleted"):
        Syncer(tmp_path / "run", tracking_uri, "e").push()


@pytest.mark.parametrize("by", ["run id", "run directory", "tag"])
def test_trial_is_child_of_its_sweep(tracking_uri: str, tmp_path: Path, by: str) -> None:
    sweep = Journal(tmp_path / "sweep" / "journal.jsonl")
    parent = Syncer(tmp_path / "sweep", tracking_uri, "e").push().run_id
    with journal_of(tmp_path / "trial") as journal:
        if by == "tag":
            journal.tags({"rwkvctl.parent": sweep.uid})
    sweep.close()
    given = {"run id": parent, "run directory": tmp_path / "sweep", "tag": None}[by]
    child = Syncer(tmp_path / "trial", tracking_uri, "e", parent=given).push().run_id
    tags = MlflowClient(tracking_uri).get_run(child).data.tags
    assert tags["mlflow.parentRunId"] == parent != child


def test_trial_that_is_synced_before_its_sweep_is_linked_later(tracking_uri: str, tmp_path: Path) -> None:
    sweep = Journal(tmp_path / "sweep" / "journal.jsonl")
    with journal_of(tmp_path / "trial") as journal:
        journal.tags({"rwkvctl.parent": sweep.uid})
        syncer = Syncer(tmp_path / "trial", tracking_uri, "e")
        child = syncer.push().run_id
        parent = Syncer(tmp_path / "sweep", tracking_uri, "e").push().run_id
        journal.metrics({"dsc": 0.5}, 9)
        syncer.push()
    sweep.close()
    assert MlflowClient(tracking_uri).get_run(child).data.tags["mlflow.parentRunId"] == parent


def test_names_and_lengths_that_mlflow_refuses_hold_nothing_up(tracking_uri: str, tmp_path: Path) -> None:
    with Journal(tmp_path / "run" / "journal.jsonl") as journal:
        journal.params({"a[0]": "x" * 9000, **{f"p{i}": i for i in range(250)}})
        journal.tags({"note": "y" * 20_000})
        journal.metrics({"dsc/../é%": 1.0, "n" * 300: 2.0}, 0)
    run_id = Syncer(tmp_path / "run", tracking_uri, "e").push().run_id
    data = MlflowClient(tracking_uri).get_run(run_id).data
    assert (len(data.params), len(data.params["a_0_"]), len(data.tags["note"])) == (251, 6000, 8000)
    assert data.metrics == {"dsc/__": 1.0, "n" * 250: 2.0}


def test_background_sends_while_training_writes(tracking_uri: str, tmp_path: Path) -> None:
    journal = journal_of(tmp_path / "run")
    syncer = Syncer(tmp_path / "run", tracking_uri, "e")
    syncer.start(interval=0.05)
    deadline = time.monotonic() + 900
    while not (syncer.run_id and runs(tracking_uri)) and time.monotonic() < deadline:
        time.sleep(0.05)
    for step in range(5, 50):
        journal.metrics({"train/loss": 1 / (1 + step)}, step)
    journal.event("end", status="FINISHED")
    journal.close()
    assert syncer.close()
    assert syncer.run_id is not None
    assert history(tracking_uri, syncer.run_id) == expected(50)
    assert runs(tracking_uri)[0].info.status == "FINISHED"


def test_server_that_is_down_costs_one_warning_and_little_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in mlflow_client.ENVIRONMENT:
        monkeypatch.setenv(name, mlflow_client.ENVIRONMENT[name])
    journal = journal_of(tmp_path / "run")
    syncer = Syncer(tmp_path / "run", f"http://127.0.0.1:{free_port()}", "e")
    start = time.monotonic()
    with caplog.at_level(logging.WARNING, "rwkvctl"):
        syncer.start(interval=0.05)
        time.sleep(0.5)
        journal.metrics({"train/loss": 0.1}, 99)
        assert not syncer.close(timeout=10)
    journal.close()
    assert time.monotonic() - start < 11
    texts = [record.getMessage() for record in caplog.records if record.name == "rwkvctl"]
    assert len(texts) == 2
    assert "metrics are kept in the journal" in texts[0]
    assert f"rwkvctl sync {tmp_path / 'run'}" in texts[1]


def test_without_mlflow_installed_training_goes_on(tmp_path: Path) -> None:
    code = f"""
import logging, sys
logging.basicConfig(level="WARNING", stream=sys.stdout)
sys.modules["mlflow"] = None
from rwkvctl.runs.journal import Journal
from rwkvctl.runs.sync import Syncer
journal = Journal({str(tmp_path / "journal.jsonl")!r})
syncer = Syncer({str(tmp_path)!r}, "http://127.0.0.1:9", "e")
syncer.start(0.01)
journal.metrics({{"loss": 1.0}}, 0)
print(syncer.close())
"""
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert "metrics stay in" in out
    assert out.endswith("False\n")


@pytest.mark.slow
def test_trials_that_start_at_once_share_a_database_that_does_not_exist_yet(
    migrated_database: Path, tmp_path: Path
) -> None:
    code = """
import sys
from rwkvctl.runs.journal import Journal
from rwkvctl.runs.sync import Syncer
with Journal(sys.argv[1] + "/journal.jsonl") as journal:
    for step in range(200):
        journal.metrics({"train/loss": 1 / (1 + step)}, step)
print(Syncer(sys.argv[1], sys.argv[2], "sweep").push().run_id)
"""
    uri = f"sqlite:///{tmp_path / 'home' / 'mlflow.db'}"
    trials = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / f"trial{i}"), uri], stdout=subprocess.PIPE, text=True
        )
        for i in range(3)
    ]
    ids = [trial.communicate(timeout=900)[0].strip() for trial in trials]
    assert [trial.returncode for trial in trials] == [0, 0, 0]
    assert {run.info.run_id for run in runs(uri)} == set(ids)
    assert len({run.info.experiment_id for run in runs(uri)}) == 1
    assert all(history(uri, run_id) == expected(200) for run_id in ids)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """A real `mlflow server` on loopback that can be stopped and started again."""

    def __init__(self, folder: Path, database: str):
        self.uri = f"http://127.0.0.1:{free_port()}"
        self._command = [
            str(Path(sys.executable).with_name("mlflow")), "server", "--backend-store-uri", database,
            "--artifacts-destination", str(folder / "served"), "--serve-artifacts", "--workers", "1",
            "--host", "127.0.0.1", "--port", self.uri.rsplit(":", 1)[1],
        ]  # fmt: skip
        self._log = folder / "server.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        env = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, env=env, start_new_session=True)
        deadline = time.monotonic() + 900
        while time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=1):
                    return
            except OSError:
                time.sleep(0.3)
        raise AssertionError(self._log.read_text())

    def stop(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, 9)
            self._process.wait()
            self._process = None


@pytest.mark.slow
def test_server_that_is_killed_and_comes_back_gets_everything_once(
    tracking_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in mlflow_client.ENVIRONMENT:
        monkeypatch.setenv(name, mlflow_client.ENVIRONMENT[name])
    server = Server(tmp_path, tracking_uri)
    server.start()
    try:
        journal = journal_of(tmp_path / "run", range(100))
        syncer = Syncer(tmp_path / "run", server.uri, "e")
        syncer.start(interval=0.1)
        deadline = time.monotonic() + 900
        while not runs(tracking_uri) and time.monotonic() < deadline:
            time.sleep(0.05)
        server.stop()
        for step in range(100, 300):
            journal.metrics({"train/loss": 1 / (1 + step)}, step)
        time.sleep(1)
        (tmp_path / "run" / "cases.csv").write_text("case,dsc\n")
        journal.artifact(tmp_path / "run" / "cases.csv")
        journal.event("end", status="FINISHED")
        journal.close()
        server.start()
        assert syncer.close(timeout=600)
        assert syncer.run_id is not None
        assert history(server.uri, syncer.run_id) == expected(300)
        [run] = runs(server.uri)
        assert run.info.status == "FINISHED"
        assert run.info.artifact_uri.startswith("mlflow-artifacts:")
        client = MlflowClient(server.uri)
        copied = client.download_artifacts(run.info.run_id, "cases.csv", str(tmp_path))
        assert Path(copied).read_text() == "case,dsc\n"
    finally:
        server.stop()


@pytest.fixture
def silent_server() -> Iterator[str]:
    """A server that accepts every connection and never says a word."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_a_server_that_accepts_and_never_answers_holds_nothing_up(
    silent_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long MLflow's own client would wait for it."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "3600")
    monkeypatch.setattr(sync, "SHORTLY", 0.01)
    monkeypatch.setattr(mlflow_client, "SILENT_AFTER", 0.2)
    with Journal(tmp_path / "journal.jsonl") as journal:
        journal.metrics({"a": 1.0}, step=1)
    syncer = Syncer(tmp_path, silent_server, "e")
    syncer.start()
    assert running(tmp_path) is syncer
    syncer.settle(0.1)  # the job begins
    assert not syncer.do("registered", lambda: pytest.fail("it was never reached"))
    assert syncer.reason == "it does not answer"
    assert syncer.close(timeout=600) is False
    assert running(tmp_path) is None
    assert syncer.outcomes == {}


def test_what_could_not_be_done_is_done_when_the_server_is_back(
    migrated_database: Path, tracking_uri: str, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with Journal(run / "journal.jsonl") as journal:
        journal.metrics({"a": 1.0}, step=1)
    (tmp_path / "server").write_text("a file where the database's folder should be")
    syncer = Syncer(run, f"sqlite:///{tmp_path / 'server' / 'mlflow.db'}", "e")
    syncer.start(interval=60)
    assert not syncer.do("answer", lambda: syncer.run_id)
    (tmp_path / "server").unlink()
    (tmp_path / "server").mkdir()
    shutil.copy(migrated_database, tmp_path / "server" / "mlflow.db")
    assert syncer.close(timeout=600) is True
    assert syncer.outcomes == {"answer": syncer.run_id}
    assert syncer.run_id


def test_a_task_that_fails_is_tried_again_and_metrics_are_not_blamed(
    tracking_uri: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run, ready = tmp_path / "run", threading.Event()

    def task() -> str:
        if not ready.is_set():
            raise ValueError("not\nyet")
        return "done"

    Journal(run / "journal.jsonl").close()
    syncer = Syncer(run, tracking_uri, "e")
    syncer.start(interval=60)
    assert not syncer.do("task", task)
    assert syncer.reason == "not yet"
    ready.set()
    assert syncer.close(timeout=600) is True
    assert syncer.outcomes == {"task": "done"}
    assert not caplog.records


@pytest.mark.parametrize("uri", ["http://127.0.0.1:9", "sqlite:////proc/x/ml.db", "foo://bar"])
def test_a_sync_that_cannot_be_is_one_line_and_loses_nothing(tmp_path: Path, uri: str) -> None:
    with Journal(tmp_path / "run" / "journal.jsonl") as journal:
        journal.metrics({"a": 1.0}, step=1)
    before = (tmp_path / "run" / "journal.jsonl").read_bytes()
    with pytest.raises(JobFailedError, match=rf"^run run: MLflow at {uri} did not accept it \(.*\); nothing") as it:
        sync_run(tmp_path / "run", uri)
    assert len(str(it.value)) < 320
    assert "\n" not in str(it.value)
    assert (tmp_path / "run" / "journal.jsonl").read_bytes() == before


def test_a_password_in_the_uri_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    Journal(tmp_path / "run" / "journal.jsonl").close()
    with pytest.raises(UserError, match=r"tracking server postgresql://ann:\*\*\*@db/x: must not contain a password"):
        sync_run(tmp_path / "run", "postgresql://ann:hunter2@db/x")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["journal.jsonl"]


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (401, "You are not authenticated. Please see the documentation", "401, wrong user or password: set MLFLOW_"),
        (403, "Permission denied", "403, this user has no permission"),
        (403, "Invalid Host header - possible DNS rebinding attack detected", "403, it does not answer to this name"),
    ],
)
def test_a_server_that_lets_nobody_in_is_told_by_what_to_do(status: int, body: str, said: str):
    from http.server import BaseHTTPRequestHandler, HTTPServer

    class Refuses(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Refuses) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(Exception) as error:  # noqa: PT011  (MLflow's own kinds)
            MlflowClient(f"http://127.0.0.1:{server.server_port}").get_experiment_by_name("x")
        server.shutdown()
    assert sync.first_line(error.value).startswith(said)
