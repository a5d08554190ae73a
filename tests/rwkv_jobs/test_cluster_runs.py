"""Runs as jobs of a real cluster with a job server, whose nodes have another rwkvctl and no Python of ours on PATH."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from rwkvctl.base.errors import UserError
from rwkvctl.base.processes import signal_group
from rwkvctl.launch import address, ship
from rwkvctl.launch.job_server import JobServer, Unreachable
from rwkvctl.runs import folder as run_folder
from rwkvctl.runs import state

from .conftest import PATIENCE, Jobs, history, latest, wait_for, wait_for_step

pytestmark = [pytest.mark.slow, pytest.mark.ray]
TOKEN = "hunter2-of-the-cluster-hunter2-of-the-cluster"
PASSWORD = "hunter2-of-mlflow"
PROBE = """
import json, ray, rwkvctl
from rwkvctl.runs import folder
where = lambda: [__import__(name).__file__ for name in ("rwkvctl", "rwkv_jobs", "rwkv_unet", "biwkv")]
ray.init(address="auto", log_to_driver=False)
print(json.dumps([where(), ray.get(ray.remote(where).remote())]))
"""


class Head(NamedTuple):
    server: str
    gcs: str


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """A head with a token, started without the environment's `bin` on PATH and with another rwkvctl on PYTHONPATH."""
    folder = Path(tempfile.mkdtemp(prefix="rh", dir="/tmp"))  # Ray's sockets need a short path
    other = folder / "other" / "rwkvctl"
    other.mkdir(parents=True)
    (other / "__init__.py").write_text("raise RuntimeError('the version that is installed on the cluster')\n")
    ports = [free_port() for _ in range(4)]
    command = [sys.executable, "-P", "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus", "2"]
    command += ["--port", str(ports[0]), "--dashboard-port", str(ports[1]), "--ray-client-server-port", str(ports[2])]
    command += [
        "--dashboard-agent-listen-port",
        str(ports[3]),
        "--temp-dir",
        str(folder / "r"),
        "--include-dashboard=1",
    ]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "RWKVCTL_"))}
    environment |= {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(other.parent), "RAY_AUTH_TOKEN": TOKEN}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    log = (folder / "head.log").open("w")
    process = subprocess.Popen(
        command, env=environment, stdout=log, stderr=log, cwd=folder, start_new_session=True, stdin=subprocess.DEVNULL
    )
    found = Head(f"http://127.0.0.1:{ports[1]}", f"127.0.0.1:{ports[0]}")
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("RAY_AUTH_TOKEN", TOKEN)
            patch.setenv("RAY_AUTH_MODE", "token")
            wait_for(lambda: is_up(found), f"head ({folder / 'head.log'})", PATIENCE)
        yield found
    finally:
        mine = [process.pid, *descendants(process.pid)]
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        finally:
            for pid in mine:
                signal_group(pid, signal.SIGKILL) if pid == process.pid else kill(pid)
            log.close()
            shutil.rmtree(folder, ignore_errors=True)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def is_up(head: Head) -> bool:
    """Its job server answers, and its own node has joined."""
    try:
        return bool(JobServer(head.server).version()) and address.Cluster(head.gcs).has_this_machine()
    except (Unreachable, UserError):
        return False


def descendants(pid: int) -> list[int]:
    import psutil

    return [child.pid for child in psutil.Process(pid).children(recursive=True)]


def kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


@pytest.fixture(autouse=True)
def tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)


def rwkvctl(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "rwkvctl.cli.app", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)


def test_a_cluster_is_reached_by_either_address(
    head: Head, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """From one of its nodes, and from a machine that is none, whose driver could not take part."""
    assert [address.reach(head.server), address.reach(head.gcs)] == [head.server, head.gcs]
    assert capsys.readouterr().err == ""
    with monkeypatch.context() as patch:
        patch.setattr(address, "own_addresses", lambda: {"192.0.2.77"})
        assert address.reach(head.gcs) == head.server
        assert capsys.readouterr().err == (
            f"note: this machine is no node of the cluster at {head.gcs}; the job goes through its job server "
            f"{head.server}\n"
        )
    with monkeypatch.context() as patch:  # its socket is seen, and belongs to another network
        patch.setattr(address, "answers", lambda path: False)
        assert address.reach(head.gcs) == head.server
    for given in head:
        with monkeypatch.context() as patch:
            patch.setenv("RAY_AUTH_TOKEN", "hunter2-of-another-cluster")
            with pytest.raises(UserError, match="the cluster refuses this token; set RAY_AUTH_TOKEN"):
                address.reach(given)
    monkeypatch.setattr(address, "own_version", lambda: "2.40.0")
    with pytest.raises(UserError, match=r"runs Ray [\d.]+ and this machine 2\.40\.0; install ray=="):
        address.reach(head.gcs)


def test_the_code_that_is_sent_comes_before_what_is_installed(head: Head, jobs: Jobs):
    """In the driver and in the workers; with the Python that Ray runs in, which is not on PATH."""
    from ray.job_submission import JobSubmissionClient

    spec = run_folder.read_spec(jobs.new("finetune", "probe"))
    submission = JobSubmissionClient(head.server).submit_job(
        entrypoint=f"{ship.PYTHON} -c '{PROBE}'", runtime_env=ship.runtime_env(spec, "probe")
    )
    server = JobServer(head.server)
    wait_for(lambda: server.info(submission).terminal, "end of the probe", PATIENCE)
    printed = server.logs(submission)
    assert server.info(submission).status == "SUCCEEDED", printed
    driver, worker = json.loads(printed.splitlines()[-1])
    assert driver == worker
    assert ["/py_modules_files/_ray_pkg_" in path for path in driver] == [True] * 4, driver


def test_a_run_is_detached_followed_stopped_and_resumed(head: Head, jobs: Jobs, tmp_path: Path):
    settings = jobs.settings("finetune", "cluster.launcher=ray", "train.epochs=100000", "train.checkpoint_steps=null")
    sets = [
        word for assignment in settings[1] for word in ("--set", assignment) if "launcher=process" not in assignment
    ]
    done = rwkvctl("finetune", settings[0], *sets, "--name", "far", "--address", head.server, "--detach")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1:4] == [
        "run far is started",
        "Useful commands",
        "  follow  rwkvctl run logs -f far",
    ]
    run_dir = jobs.runs / "far"
    wait_for_step(run_dir, 2)
    [row] = json.loads(rwkvctl("run", "list", "--json").stdout)
    assert (row["state"], row["where"], row["total"]) == ("running", head.server, 300000)
    assert row["step"] >= 2
    info = job_details(head, row["submission_id"])
    assert (info["metadata"]["rwkvctl_run"], len(info["metadata"]["spec_sha256"])) == ("far", 64)
    assert info["metadata"].keys() >= {"git_commit", "git_dirty", "code_sha256"}
    ctrl_c_detaches(run_dir)
    stopped = rwkvctl("run", "stop", "far")
    assert stopped.returncode == 0, stopped.stderr
    assert stopped.stdout.startswith("run far: stopped at step ")
    last = max(step for key, step, _ in history(run_dir) if key == "train/loss")
    assert latest(run_dir).name == f"step-{last:08}"
    assert rwkvctl("run", "wait", "far").returncode == 3
    refused = rwkvctl("finetune", "--resume", "far", "--set", "data.split=nope")
    assert (refused.returncode, run_dir.exists()) == (2, True), refused.stderr
    followed = subprocess.Popen(
        [sys.executable, "-P", "-m", "rwkvctl.cli.app", "run", "resume", "far"], stdout=subprocess.PIPE, text=True
    )
    try:
        wait_for_step(run_dir, last + 1)
        assert rwkvctl("run", "stop", "far", "--now").returncode == 0
        assert followed.wait(PATIENCE) == 3
    finally:
        followed.kill()
        followed.communicate()
    assert (state.of(run_dir).state, state.of(run_dir).exit_code) == ("stopped", 3)
    logs = rwkvctl("run", "logs", "far")
    everything = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    shown = done.stdout + done.stderr + stopped.stdout + logs.stdout + json.dumps(info["metadata"])
    for secret in (TOKEN, PASSWORD):
        assert secret not in shown
        assert not any(secret.encode() in content for content in everything)


def job_details(head: Head, submission: str) -> Any:
    return JobServer(head.server)._json("GET", f"/api/jobs/{submission}")


def ctrl_c_detaches(run_dir: Path) -> None:
    """Ctrl-C on the command that follows the job leaves it running, and says how to come back."""
    command = [sys.executable, "-P", "-m", "rwkvctl.cli.app", "run", "logs", "-f", run_dir.name]
    follower = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=ctrl_c_is_heard
    )
    assert follower.stdout is not None
    try:
        for line in follower.stdout:
            if line.startswith("step "):
                break
        follower.send_signal(signal.SIGINT)
        _, err = follower.communicate(timeout=PATIENCE)
    finally:
        follower.kill()
    assert follower.returncode == 130, err
    assert f"no longer following; run {run_dir.name} goes on\nUseful commands\n" in err
    before = state.of(run_dir)
    assert before.step is not None
    wait_for_step(run_dir, before.step + 1)


def ctrl_c_is_heard() -> None:
    """Where tests run in the background it is ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
