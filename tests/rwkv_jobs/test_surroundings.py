"""What a training stands on fails under it: the disk, the data, the tracking server. It ends in one line and goes on
later to the same weights, or does not even notice."""

from __future__ import annotations

import http.server
import json
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from rwkv_jobs import stepper
from rwkvctl.runs.sync import sync_run

from .conftest import PATIENCE, Jobs, history, mlflow_history, mlflow_runs, weights

AT_STEP_4 = """
import os, subprocess
from rwkv_jobs import stepper
taken = stepper.Stepper.step
def step(self, loss_of, number, **options):
    if number == 4:
        {fault}
    return taken(self, loss_of, number, **options)
stepper.Stepper.step = step
"""
FILL = """
        with open({path!r}, "wb") as file:
            while True:
                try:
                    file.write(bytes(4096))
                    file.flush()
                except OSError:
                    break
        os.truncate({path!r}, max(0, os.path.getsize({path!r}) - {left}))
"""


@contextmanager
def mounted(folder: Path, *options: str) -> Iterator[None]:
    """A file system of its own for as long as the block runs; skipped where we may not mount one."""
    command = ["mount", *options, str(folder)]
    if os.geteuid() or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("only root may mount a file system")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def ends_in_one_line(jobs: Jobs, run_dir: Path, fault: str, children: list[Any]) -> str:
    children.append(process := jobs.start("finetune", run_dir, AT_STEP_4.format(fault=fault.strip())))
    process.join(PATIENCE)
    log = run_dir.with_suffix(".log").read_text()
    assert process.exitcode == 1, log[-3000:]
    assert "Traceback" not in log
    [line] = [line for line in log.splitlines() if line.startswith("failed: ")]
    return line


@pytest.mark.parametrize("left", [100_000, 0], ids=["checkpoint", "journal"])
def test_a_full_disk(jobs: Jobs, uninterrupted: Callable[[str], Path], children: list[Any], tmp_path: Path, left: int):
    """There is no room for the next checkpoint, or not even for a line of the journal."""
    jobs.runs.mkdir()
    with mounted(jobs.runs, "-t", "tmpfs", "-o", "size=64m", "none"):
        run_dir, filler = jobs.new("finetune", "full"), jobs.runs / "filler"
        line = ends_in_one_line(jobs, run_dir, FILL.format(path=str(filler), left=left), children)
        assert "No space left on device; free some space; continue with: rwkvctl " in line
        filler.unlink()
        assert jobs.run("finetune", run_dir) == 0
        assert weights(run_dir) == weights(uninterrupted("finetune"))
        assert {run.info.status for run in mlflow_runs(jobs.home)} == {"FINISHED"}


def test_a_storage_that_becomes_read_only(jobs: Jobs, uninterrupted: Callable[[str], Path], children: list[Any]):
    run_dir = jobs.new("finetune", "stuck")
    folder = run_dir / "checkpoints"
    folder.mkdir()
    with mounted(folder, "--bind", str(folder)):
        fault = f'subprocess.run(["mount", "-o", "remount,bind,ro", {str(folder)!r}], check=True)'
        line = ends_in_one_line(jobs, run_dir, fault, children)
    assert "Read-only file system" in line
    assert str(folder) in line
    assert jobs.run("finetune", run_dir) == 0
    assert weights(run_dir) == weights(uninterrupted("finetune"))


def test_a_shard_that_goes_away(
    jobs: Jobs, uninterrupted: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """What is open stays readable; whoever opens it next names it, and the run goes on when it is back."""
    data = Path(shutil.copytree(jobs.shards / "polyps", tmp_path / "polyps"))
    [shard] = data.glob("*.tar")
    run_dir = jobs.new("finetune", "lost", data=data)
    taken = stepper.Stepper.step

    def step(self: Any, loss_of: Any, number: int, **options: Any) -> Any:
        if number == 4:
            shard.rename(tmp_path / "away")
        return taken(self, loss_of, number, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stepper.Stepper, "step", step)
        assert jobs.run("finetune", run_dir) == 2
    said = capsys.readouterr()
    assert (
        said.err
        == f"error: {shard}: cannot be read (No such file or directory); copy the shard back or prepare again\n"
    )
    assert "step 6/6" in said.out
    (tmp_path / "away").rename(shard)
    assert jobs.run("finetune", run_dir) == 0
    assert weights(run_dir) == weights(uninterrupted("finetune"))


# The tracking server ------------------------------------------------------------------------------------------------


class Answers(http.server.BaseHTTPRequestHandler):
    """500 to everything; after a while where the server is slow."""

    def answer(self) -> None:
        time.sleep(self.server.delay)  # type: ignore[attr-defined]
        self.send_response(500)
        self.end_headers()

    do_GET = do_POST = do_PATCH = answer

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def failing(request: pytest.FixtureRequest) -> Iterator[str]:
    """A tracking server that does not do what it should."""
    if request.param == "silent":
        with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        return
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    server.delay = 0.0 if request.param == "500" else 3.0  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.slow
@pytest.mark.parametrize("failing", ["silent", "500", "slow"], indirect=True)
def test_a_tracking_server_that_fails_is_no_matter_of_the_training(
    jobs: Jobs,
    uninterrupted: Callable[[str], Path],
    failing: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    """While there are steps, the thread that trains never talks to it; what it should have got waits in the journal."""
    monkeypatch.setattr("rwkv_jobs.driver.FIRST_SENT_AFTER", 0.0)
    talked: set[str] = set()
    connect, summary = socket.socket.connect, jobs.runs / "run" / "summary.json"

    def watched(self: socket.socket, address: Any) -> None:
        if not summary.exists():
            talked.add(threading.current_thread().name)
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", watched)
    assert jobs.run("finetune", "run", f"tracking.uri={failing}") == 0
    run_dir = jobs.runs / "run"
    assert talked, "it was tried"
    assert threading.main_thread().name not in talked
    assert weights(run_dir) == weights(uninterrupted("finetune"))
    assert "rwkvctl sync" in capsys.readouterr().out
    assert json.loads((run_dir / "result.json").read_text())["model_uri"] is None
    sync_run(run_dir, f"sqlite:///{jobs.home / 'mlflow.db'}")
    [found] = mlflow_runs(jobs.home)
    assert sorted(mlflow_history(jobs.home, found)) == sorted(history(run_dir))
