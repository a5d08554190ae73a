"""Jobs on a terminal: Ctrl-C as it is typed, SIGTERM, and what lies in the current folder."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import signal
import socket
import subprocess
import sys
import termios
import threading
import urllib.request
from pathlib import Path

import pytest

from rwkvctl.cli import assemble
from rwkvctl.runs import folder as run_folder
from rwkvctl.sweeps.study import Study

from .conftest import PATIENCE, Jobs, events, mlflow_runs, wait_for, wait_for_step


class Terminal:
    """A command on a pseudo-terminal of its own, as its session's leader."""

    def __init__(self, command: list[str], folder: Path):
        self.output = ""
        self.terminal, end = pty.openpty()
        self.process = subprocess.Popen(
            command,
            cwd=folder,
            env=os.environ | {"TERM": "dumb"},
            stdin=end,
            stdout=end,
            stderr=end,
            start_new_session=True,
            preexec_fn=own_terminal,
        )
        os.close(end)
        self.pid, self.poll = self.process.pid, self.process.poll
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        try:
            while data := os.read(self.terminal, 65536):
                self.output += data.decode(errors="replace").replace("\r", "")
        except OSError:  # closed: the last process has gone
            return

    def type(self, text: str) -> None:
        os.write(self.terminal, text.encode())

    def wait(self) -> int:
        return self.process.wait(PATIENCE)

    def kill(self) -> None:
        """However the test ends."""
        if self.poll() is None:
            self.process.kill()
            self.process.wait()


def own_terminal() -> None:
    """Let the session have the terminal, so that Ctrl-C reaches it; where tests run in the background it is ignored."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A folder with files that are named like modules of the standard library."""
    folder = tmp_path / "hostile"
    folder.mkdir()
    for name in ("random", "token", "queue", "struct", "timm"):
        (folder / f"{name}.py").write_text("raise RuntimeError(__file__)\n")
    return folder


def session(pid: int) -> list[int]:
    """The living processes of a terminal's session, and those that have left it but descend from it."""
    found, parents = [], {pid}
    for path in sorted(Path("/proc").glob("[0-9]*"), key=lambda path: int(path.name)):
        try:
            state, parent, _, leader = (path / "stat").read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if state not in "ZX" and (int(leader) == pid or int(parent) in parents):
            parents.add(int(path.name))
            found.append(int(path.name))
    return found


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize("how", ["ctrl-c twice", "sigterm"])
def test_a_stopped_job_ends_in_order(jobs: Jobs, hostile: Path, how: str):
    run_dir = jobs.new("finetune", "stopped", "cluster.launcher=ray", "train.epochs=100000")
    command = [sys.executable, "-P", "-m", "rwkvctl.cli.app", "finetune", "--resume", "stopped"]
    terminal = Terminal(command, hostile)
    try:
        wait_for_step(run_dir, 1, PATIENCE)
        processes = session(terminal.pid)
        assert len(processes) > 1
        if how == "sigterm":
            os.kill(terminal.pid, signal.SIGTERM)
        else:
            terminal.type("\x03\x03")
        assert terminal.wait() == 130, terminal.output
    finally:
        terminal.kill()
    wait_for(lambda: "interrupted" in terminal.output, "last line", PATIENCE)
    assert terminal.output.splitlines()[-1] == "interrupted; continue with: rwkvctl finetune --resume stopped"
    for bad in ("Traceback", "RuntimeError", "*** SIG", "Exiting"):
        assert bad not in terminal.output
    assert [event["status"] for event in events(run_dir, "end")] == ["KILLED"]
    assert [run.info.status for run in mlflow_runs(jobs.home)] == ["KILLED"]
    assert not (run_dir / "lease.json").exists()
    assert run_folder.result(run_dir) is None
    wait_for(lambda: not [pid for pid in processes if alive(pid)], "end of all processes", PATIENCE)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_ui_that_is_ended_or_killed_leaves_nothing(number: signal.Signals, jobs: Jobs, tmp_path: Path):
    """MLflow, and Optuna's dashboard beside it."""
    pytest.importorskip("optuna_dashboard")
    spec = assemble.tune_spec("ccm_hidden", None, str(jobs.shards / "polyps"), {}, [], None, 2, 1, None, "seen")
    Study(spec, run_folder.create(spec, str(jobs.runs))).ask()  # type: ignore[arg-type]
    ports = [free_port(), free_port()]
    ui = ["ui", "--port", str(ports[0]), "--study-port", str(ports[1])]
    terminal = Terminal([sys.executable, "-P", "-m", "rwkvctl.cli.app", *ui], tmp_path)

    def answering() -> list[int]:
        return [port for port in ports if is_answered(port)]

    try:
        wait_for(lambda: answering() == ports, "both", PATIENCE)
        with urllib.request.urlopen(f"http://127.0.0.1:{ports[1]}/api/studies", timeout=PATIENCE) as answer:
            assert [study["study_name"] for study in json.load(answer)["study_summaries"]] == ["seen"]
        processes = session(terminal.pid)
        os.kill(terminal.pid, number)
        assert terminal.wait() == (130 if number == signal.SIGTERM else -number)
    finally:
        terminal.kill()
    assert f"Optuna dashboard: http://127.0.0.1:{ports[1]}/dashboard/studies/1 (sweep seen)" in terminal.output
    wait_for(lambda: not [pid for pid in processes if alive(pid)] and not answering(), "end of all processes", PATIENCE)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def is_answered(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0
