"""What an export leaves is all that MLflow had, read back with pandas; whatever it was interrupted by."""

from __future__ import annotations

import hashlib
import http.server
import json
import math
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param

from rwkvctl.base.errors import JobFailedError, UserError
from rwkvctl.runs import export as exports
from rwkvctl.runs import export_folder, export_tables, mirror
from rwkvctl.runs.export import Exported, Wanted, export
from rwkvctl.runs.export_folder import ExportFolder
from rwkvctl.runs.journal import Journal
from rwkvctl.runs.sync import Syncer

from ...store_door import Door
from .test_sync import Server


@pytest.fixture(scope="module")
def tracked(migrated_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `mlflow.db`: experiment `ward` has three runs, the last of them still running."""
    folder = tmp_path_factory.mktemp("tracked")
    shutil.copy(migrated_database, folder / "mlflow.db")
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.create_experiment("ward", artifact_location=(folder / "artifacts").as_uri())
    (folder / "cases.csv").write_text("case,dsc\n1,0.5\n")
    (folder / "bytes").write_bytes(bytes(range(256)) * 40)
    for number in range(3):
        run = client.create_run(experiment, run_name=f"run-{number}", tags={"ward": "é"}, start_time=1000 + number)
        run_id = run.info.run_id
        points = [Metric("train/loss", 1 / (1 + step), 5000 + step, step) for step in range(30)]
        odd = [Metric("odd", value, 6000, step) for step, value in enumerate((math.nan, 0.5))]
        client.log_batch(run_id, metrics=[*points, *odd], params=[Param("lr", f"{number}e-3"), Param("seed", "7")])
        client.log_artifact(run_id, str(folder / "cases.csv"))
        client.log_artifact(run_id, str(folder / "bytes"), "model/deep er")
        if number < 2:
            client.set_terminated(run_id, end_time=9000)
    return folder


@pytest.fixture
def uri(tracked: Path, tmp_path: Path) -> str:
    """A database of the test's own; the artifacts are shared."""
    shutil.copy(tracked / "mlflow.db", tmp_path / "own.db")
    return f"sqlite:///{tmp_path / 'own.db'}"


def ward(uri: str, out: Path) -> Exported:
    return export([Wanted(uri, experiment="ward")], out)


def ids(uri: str) -> list[str]:
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("ward")
    return [run.info.run_id for run in client.search_runs([experiment.experiment_id], order_by=["start_time ASC"])]


def assert_whole(out: Path, uri: str, chosen: tuple[str, ...] = ()) -> None:
    """All that MLflow has is in the folder, and the manifest says of each file what it is."""
    client = MlflowClient(uri)
    runs, points = pd.read_parquet(out / "runs.parquet"), pd.read_parquet(out / "metrics.parquet")
    assert list(runs.run_id) == list(chosen or ids(uri))
    for row in runs.itertuples():
        run = client.get_run(row.run_id)
        assert (row.name, row.status, dict(row.params)) == (run.info.run_name, run.info.status, run.data.params)
        assert dict(row.tags) == run.data.tags
        mine = points[points.run_id == row.run_id]
        for key in run.data.metrics:
            had = [(p.step, p.timestamp, str(p.value)) for p in client.get_metric_history(row.run_id, key)]
            of_key = mine[mine.key == key]
            found = zip(of_key.step, (int(t.timestamp() * 1000) for t in of_key.time), of_key.value, strict=True)
            assert [(step, t, str(value)) for step, t, value in found] == had
        assert len(mine) == row.points == sum(len(client.get_metric_history(row.run_id, k)) for k in run.data.metrics)
        folder = out / "artifacts" / row.run_id
        assert (folder / "cases.csv").read_text() == "case,dsc\n1,0.5\n"
        assert (folder / "model" / "deep er" / "bytes").read_bytes() == bytes(range(256)) * 40
    manifest = json.loads((out / "manifest.json").read_text())
    here = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert {name for name in here if not name.startswith(".export/")} == {*manifest["files"], "manifest.json"}
    for name, said in manifest["files"].items():
        content = (out / name).read_bytes()
        assert (hashlib.sha256(content).hexdigest(), len(content)) == (said["sha256"], said["size"])
    assert list((out / ".export" / "incoming").iterdir()) == []


def state_of(out: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of every file."""
    return {
        path.relative_to(out).as_posix(): (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in out.rglob("*")
        if path.is_file()
    }


def test_all_of_an_experiment_is_there_and_what_is_still_running_is_marked(uri: str, tmp_path: Path) -> None:
    done = ward(uri, tmp_path / "out")
    assert_whole(tmp_path / "out", uri)
    assert (done.runs, done.running, done.points, done.files) == (3, 1, 96, 8)
    runs = pd.read_parquet(tmp_path / "out" / "runs.parquet")
    assert list(runs.final) == [True, True, False]
    assert [None if pd.isna(end) else end.isoformat() for end in runs.end] == [*["1970-01-01T00:00:09+00:00"] * 2, None]
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["running"] == [runs.run_id[2]]
    assert set(runs.tracking_uri) == {uri}


def test_a_second_export_fetches_only_what_is_still_running(uri: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ward(uri, out)
    before = state_of(out)
    again = ward(uri, out)
    running = ids(uri)[2]
    assert again.fetched_files == 3  # its points, and its two files
    after = state_of(out)
    changed = {name for name in after if after[name] != before.get(name) and name != ".export/journal.jsonl"}
    assert all(running in name or name == "manifest.json" for name in changed)
    MlflowClient(uri).set_terminated(running, end_time=9999)
    ended = ward(uri, out)
    assert (ended.running, ended.fetched_files) == (0, 4)  # runs.parquet, the points and two files
    assert_whole(out, uri)
    before = state_of(out)
    assert ward(uri, out).fetched_files == 0
    assert state_of(out) == before


def test_what_mlflow_says_anew_of_an_ended_run_is_fetched(uri: str, tmp_path: Path) -> None:
    """A tag, points of a resumed run, another file."""
    out, client, run = tmp_path / "out", MlflowClient(uri), ids(uri)[0]
    export([Wanted(uri, (run,))], out)
    client.set_tag(run, "note", "kept")
    assert export([Wanted(uri, (run,))], out).fetched_files == 1
    client.log_metric(run, "train/loss", 0.25, step=99)
    assert export([Wanted(uri, (run,))], out).points == 33
    points = pd.read_parquet(out / "metrics.parquet")
    assert points.value[points.step == 99].tolist() == [0.25]
    assert dict(pd.read_parquet(out / "runs.parquet").tags[0])["note"] == "kept"


def test_a_damaged_or_lost_file_is_fetched_again(uri: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export([Wanted(uri, tuple(ids(uri)[:2]))], out)
    [damaged, lost] = [out / "artifacts" / run / "cases.csv" for run in ids(uri)[:2]]
    damaged.write_text("case,dsc\n1,0.9\n")
    lost.unlink()
    with (out / ".export" / "journal.jsonl").open("a") as file:
        file.write('{"file": "artifacts/x", "si')
    assert export([Wanted(uri, tuple(ids(uri)[:2]))], out).fetched_files == 2
    assert damaged.read_text() == lost.read_text() == "case,dsc\n1,0.5\n"


def test_a_history_of_many_pages_is_complete_and_comes_in_small_pieces(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exports, "PAGE_POINTS", 7)
    monkeypatch.setattr(exports, "PAGE_RUNS", 2)
    monkeypatch.setattr(export_tables, "GROUP_ROWS", 20)
    most = 0
    add = export_tables.PointsWriter.add

    def counted(self: export_tables.PointsWriter, points: list[Metric]) -> None:
        nonlocal most
        most = max(most, len(points))
        add(self, points)

    monkeypatch.setattr(export_tables.PointsWriter, "add", counted)
    ward(uri, tmp_path / "out")
    assert_whole(tmp_path / "out", uri)
    assert most == 7
    meta = pq.ParquetFile(tmp_path / "out" / "metrics.parquet").metadata
    assert max(meta.row_group(number).num_rows for number in range(meta.num_row_groups)) <= 20


def in_child(action: Callable[[], None]) -> int:
    """Do it in a process of its own; returns the signal that ended it, or 0."""
    pid = os.fork()
    if pid == 0:
        try:
            action()
            os._exit(0)
        finally:
            os._exit(9)
    status = os.waitpid(pid, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def test_killed_at_any_moment_it_goes_on_and_fetches_nothing_twice(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each time killed at the next thing that is written: half a file, a file without its line, without a manifest."""
    monkeypatch.setattr(exports, "AT_ONCE", 1)
    child = f"sqlite:///{shutil.copy(tmp_path / 'own.db', tmp_path / 'child.db')}"  # only children connect to it
    ended = tuple(ids(uri)[:2])
    out, log = tmp_path / "out", tmp_path / "put"

    def killed_at(moment: str) -> None:
        put, note = ExportFolder.put, ExportFolder._note

        def die() -> None:
            os.kill(os.getpid(), signal.SIGKILL)

        def dying_put(self: ExportFolder, path: Path, name: str, stamp: str) -> None:
            if moment == "half a file":
                path.write_bytes(path.read_bytes()[:-1])
                die()
            put(self, path, name, stamp)
            with log.open("a") as file:
                file.write(f"{name}\n")
            if moment == "after a file":
                die()

        def dying_note(self: ExportFolder, entry: dict) -> None:
            if moment == "no line":
                die()
            if moment == "half a line":
                self._file.write(b'{"file": "artif')
                die()
            note(self, entry)

        def dying_complete(self: ExportFolder) -> None:
            die()

        ExportFolder.put, ExportFolder._note = dying_put, dying_note  # type: ignore[method-assign]
        if moment == "no manifest":
            ExportFolder.complete = dying_complete  # type: ignore[method-assign]
        export([Wanted(child, ended)], out)

    for moment in ("half a file", "no line", "half a line", *["after a file"] * 4, "no manifest"):
        assert in_child(lambda moment=moment: killed_at(moment)) == signal.SIGKILL  # type: ignore[misc]
        assert not (out / "manifest.json").exists()
    assert in_child(lambda: killed_at("never")) == 0
    assert_whole(out, child, ended)
    written = log.read_text().splitlines()
    assert len(written) == len(set(written)) == 2 * 3 + 2  # points and two files of each run, two tables


def test_a_sweep_comes_with_its_trials_and_a_study_with_its_runs(
    uri: str, tmp_path: Path, tracking_uri: str, rwkvctl: Callable
) -> None:
    runs = tmp_path / "home" / "runs"
    for name in ("sweep", "trial"):
        with Journal(runs / name / "journal.jsonl") as journal:
            (runs / name / "spec.yaml").write_text("job: evaluate\n")
            journal.metrics({"loss": 1.0}, 1)
            journal.event("end", status="FINISHED")
    parent = Syncer(runs / "sweep", tracking_uri, "e").push().run_id
    Syncer(runs / "trial", tracking_uri, "e", parent=parent).push()
    client = MlflowClient(tracking_uri)
    study = client.create_run("0", tags={"rwkvctl.study": "rates"}).info.run_id
    other = client.create_experiment("other")
    client.create_run(other, tags={"mlflow.parentRunId": parent})
    client.create_run(other, tags={"mlflow.parentRunId": study})
    found = rwkvctl(["run", "export", "sweep", "--out", str(tmp_path / "out"), "--json"])
    assert found.code == 0, found.err
    assert (json.loads(found.out)["runs"], json.loads(found.out)["running"]) == (3, 1)
    table = pd.read_parquet(tmp_path / "out" / "runs.parquet").set_index("name")
    assert table.parent_run_id["trial"] == table.run_id["sweep"] == parent
    assert set(table.experiment) == {"e", "other"}
    by_stem = rwkvctl(["run", "export", "rates", "--out", str(tmp_path / "out")])
    assert "5 runs" in by_stem.out, by_stem.err  # beside those that are there
    by_id = rwkvctl(["run", "export", study, "--out", str(tmp_path / "third")])
    assert by_id.out.startswith(f"{tmp_path / 'third'}: 2 runs")


def test_logged_models_come_along_and_points_say_which_model_and_data_they_belong_to(uri: str, tmp_path: Path) -> None:
    client, run = MlflowClient(uri), ids(uri)[0]
    experiment = client.get_run(run).info.experiment_id
    model = client.create_logged_model(experiment, name="m", source_run_id=run)
    (tmp_path / "weights").write_bytes(b"w" * 999)
    client.log_model_artifact(model.model_id, str(tmp_path / "weights"))
    client.finalize_logged_model(model.model_id, "READY")
    data = DatasetInput(Dataset("acdc", "f00d", "local", "{}"), [InputTag("mlflow.data.context", "training")])
    client.log_inputs(run, datasets=[data])
    client.log_metric(run, "dsc", 0.5, step=3, model_id=model.model_id, dataset_name="acdc", dataset_digest="f00d")
    done = export([Wanted(uri, (run,))], tmp_path / "out")
    points = pd.read_parquet(tmp_path / "out" / "metrics.parquet").set_index("key")
    assert list(points.loc["dsc", ["model_id", "dataset_name", "dataset_digest"]]) == [model.model_id, "acdc", "f00d"]
    assert points.model_id["odd"].isna().all()
    [row] = pd.read_parquet(tmp_path / "out" / "runs.parquet").itertuples()
    assert list(row.models) == [model.model_id]
    assert list(row.datasets) == [{"name": "acdc", "digest": "f00d", "context": "training"}]
    assert (tmp_path / "out" / "models" / model.model_id / "weights").read_bytes() == b"w" * 999
    assert done.files == 5
    assert export([Wanted(uri, (run,))], tmp_path / "out").fetched_files == 0


def test_a_run_in_an_object_store_is_found_from_any_machine(
    tracking_uri: str, tmp_path: Path, door: Door, monkeypatch: pytest.MonkeyPatch, rwkvctl: Callable
) -> None:
    door.answers.clear()
    address = f"s3://bucket/runs-{tmp_path.name}/stored"
    monkeypatch.setenv("RWKVCTL_CACHE", str(tmp_path / "here"))
    folder = mirror.begin(address, "spec.yaml", b"job: evaluate\nmodel: m\n")
    with Journal(folder / "journal.jsonl") as journal:
        journal.metrics({"loss": 1.0}, 1)
        journal.event("end", status="FINISHED")
    Syncer(folder, tracking_uri, "e").push()
    monkeypatch.setenv("RWKVCTL_CACHE", str(tmp_path / "there"))
    found = rwkvctl(["run", "export", address, "--out", str(tmp_path / "out")])
    assert found.code == 0, found.err
    assert list(pd.read_parquet(tmp_path / "out" / "runs.parquet").name) == ["stored"]


def test_no_secret_leaves(uri: str, tmp_path: Path) -> None:
    client, run = MlflowClient(uri), ids(uri)[0]
    secrets = {
        "db.password": "geheim1",
        "hf_token": "geheim2",
        "awsSecretAccessKey": "geheim3",
        "store": "s3://me:geheim4@host/bucket",
        "note": "uploaded with hf_geheim5abcdefghijklmnop",
        "source": "https://host/x?sig=geheim6&v=1",
        "command": "rwkvctl finetune --set store.token=geheim7 --set seed=3",
        "details": '{"hf_token": "geheim8", "seed": 3}',
    }
    kept = {"tokenizer": "wordpiece", "max_tokens": "196", "token": "none", "model.attention": "spatial_mix"}
    for key, value in (secrets | kept).items():
        client.set_tag(run, key, value)
        client.log_param(run, key, value)
    out = tmp_path / "out"
    export([Wanted(uri, (run,))], out)
    row = pd.read_parquet(out / "runs.parquet").iloc[0]
    for found in (dict(row.tags), dict(row.params)):
        assert "geheim" not in json.dumps(found)
        assert kept.items() <= found.items()
        assert found["source"] == "https://host/x?sig=***&v=1"
    assert not any(b"geheim" in path.read_bytes() for path in out.rglob("*") if path.is_file())


class Listing(http.server.BaseHTTPRequestHandler):
    """An artifact server that names what it likes."""

    files: tuple[dict, ...] = ()

    def do_GET(self) -> None:
        body = json.dumps({"files": list(self.files)}).encode() if "?path=" in self.path else b"short"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture
def artifact_server() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Listing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/api/2.0/mlflow-artifacts/artifacts/x"
        server.shutdown()


def run_with_files(uri: str, location: str) -> str:
    client = MlflowClient(uri)
    run = client.create_run(client.create_experiment("elsewhere", artifact_location=location)).info.run_id
    client.set_terminated(run)
    return run


@pytest.mark.parametrize("name", ["../../evil", "/evil", "a/../../evil", "..%2f..%2fevil"])
def test_no_name_of_a_hostile_server_leads_out(
    uri: str, tmp_path: Path, artifact_server: str, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(Listing, "files", ({"path": name, "is_dir": False, "file_size": 5},))
    with pytest.raises((UserError, JobFailedError)) as found:
        export([Wanted(uri, (run_with_files(uri, artifact_server),))], tmp_path / "deep" / "er" / "out")
    assert len(str(found.value)) < 300
    assert not list(tmp_path.rglob("*evil*"))


@pytest.mark.parametrize("path", ["..", "a/../b", "a\\..\\b", "a\0", "", "/etc/passwd", "other/file", "a\nb"])
def test_no_name_of_another_store_leads_out_either(path: str) -> None:
    """Whatever MLflow's own client lets through."""

    class Repository:
        def list_artifacts(self, below: str | None) -> list:
            from mlflow.entities import FileInfo

            return [FileInfo("a", True, None)] if below is None else [FileInfo(path, False, 1)]

    with pytest.raises(UserError, match="no path inside the run"):
        list(exports.listed(Repository(), "1"))  # type: ignore[arg-type]


def test_a_file_that_comes_short_is_not_taken_for_whole(
    uri: str, tmp_path: Path, artifact_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Listing, "files", ({"path": "a.bin", "is_dir": False, "file_size": 5000},))
    run = run_with_files(uri, artifact_server)
    with pytest.raises(JobFailedError, match=r"a\.bin came with 5 of 5000 bytes"):
        export([Wanted(uri, (run,))], tmp_path / "out")
    assert not (tmp_path / "out" / "artifacts").exists()
    monkeypatch.setattr(Listing, "files", ({"path": "a.bin", "is_dir": False, "file_size": 5},))
    export([Wanted(uri, (run,))], tmp_path / "out")
    assert (tmp_path / "out" / "artifacts" / run / "a.bin").read_bytes() == b"short"


def test_what_cannot_be_meant_is_refused_in_one_line(
    uri: str, tracking_uri: str, tmp_path: Path, rwkvctl: Callable
) -> None:
    full, file = tmp_path / "full", tmp_path / "file"
    full.mkdir()
    (full / "thesis.tex").write_text("")
    file.write_text("")
    unsent = tmp_path / "home" / "runs" / "unsent"
    Journal(unsent / "journal.jsonl").close()
    (unsent / "spec.yaml").write_text("job: evaluate\nmodel: x\n")
    new = str(tmp_path / "new")
    for line, code, said in (
        (["--out", new], 2, "run export: give runs, or --experiment NAME"),
        (["--experiment", "Defaul", "--out", new], 2, "did you mean Default?"),
        (["nothing", "--out", new], 4, "run 'nothing' is not in"),
        (["unsent", "--out", new], 2, "rwkvctl sync unsent"),
        (["--experiment", "Default", "--out", str(full)], 2, "has other files in it"),
        (["--experiment", "Default", "--out", "s3://bucket/x"], 2, "give a folder of this machine"),
        (["--experiment", "Default", "--out", str(file)], 2, f"--out {file}: cannot be written"),
    ):
        found = rwkvctl(["run", "export", *line])
        assert (found.code, said in found.err, found.err.count("\n")) == (code, True, 1), (line, found.err)
        assert len(found.err) < 300
    assert not (full / ".export").exists()
    with export_folder.opened(tmp_path / "busy"):
        found = rwkvctl(["run", "export", "--experiment", "Default", "--out", str(tmp_path / "busy")])
    assert (found.code, "another export is writing to it" in found.err) == (2, True)


def test_tracking_in_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = (tmp_path / "mlruns").as_uri()
    client = MlflowClient(uri)
    run = client.create_run("0").info.run_id
    for step in range(12):
        client.log_metric(run, "loss", step / 2, step=step)
    (tmp_path / "a.txt").write_text("a")
    client.log_artifact(run, str(tmp_path / "a.txt"))
    client.set_terminated(run)
    monkeypatch.setattr(exports, "PAGE_POINTS", 5)
    export([Wanted(uri, experiment="Default")], tmp_path / "out")
    points = pd.read_parquet(tmp_path / "out" / "metrics.parquet")
    assert list(points.value) == [step / 2 for step in range(12)]
    assert (tmp_path / "out" / "artifacts" / run / "a.txt").read_text() == "a"
    assert export([Wanted(uri, experiment="Default")], tmp_path / "out").fetched_files == 0


@pytest.mark.slow
def test_a_server(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rwkvctl: Callable) -> None:
    """A real `mlflow server`, in the middle of whose answers it is killed once."""
    server = Server(tmp_path, uri)
    server.start()
    try:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
        client = MlflowClient(server.uri)
        run = client.create_run(client.create_experiment("served"), run_name="over http").info.run_id
        (tmp_path / "a.txt").write_text("a" * 5000)
        client.log_artifact(run, str(tmp_path / "a.txt"), "sub")
        client.log_batch(run, metrics=[Metric("m", float(step), 5 + step, step) for step in range(900)])
        client.set_terminated(run)
        out = tmp_path / "out"
        line = ["run", "export", "--experiment", "ward", "--out", str(out)]
        with monkeypatch.context() as patch:
            put, count = ExportFolder.put, 0

            def counted(self: ExportFolder, path: Path, name: str, stamp: str) -> None:
                nonlocal count
                put(self, path, name, stamp)
                count += 1
                if count == 2:
                    server.stop()

            patch.setattr(ExportFolder, "put", counted)
            patch.setattr(exports, "AT_ONCE", 1)
            found = rwkvctl(line)
            assert (found.code, found.err.count("\n")) == (1, 1)
            assert "give the same command again" in found.err
        server.start()
        found = rwkvctl(line)
        assert found.code == 0, found.err
        assert_whole(out, uri)
        monkeypatch.setattr(exports, "PAGE_POINTS", 400)
        export([Wanted(server.uri, (run,))], tmp_path / "second")
        points = pd.read_parquet(tmp_path / "second" / "metrics.parquet")
        assert list(points.value) == [float(step) for step in range(900)]
        assert (tmp_path / "second" / "artifacts" / run / "sub" / "a.txt").read_text() == "a" * 5000
    finally:
        server.stop()
