"""A job of a cluster that is followed: what its end is, and that a lost stream or a silent server is not one."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rwkvctl.base.errors import TransientError, UserError
from rwkvctl.config.specs.jobs import EvaluateSpec
from rwkvctl.launch import cluster_job, observe, ship, stop_run
from rwkvctl.launch.job_server import JobServer
from rwkvctl.runs import folder as run_folder
from rwkvctl.runs import job_record

from .job_server import Answer, serving

RUNNING = (200, {"status": "RUNNING", "message": "Job is currently running."})
OPENING = (
    "2026-11-26 12:26:48,683\tINFO job_manager.py:581 -- Runtime env is setting up.\nRunning entrypoint for job x: y\n"
)


def ended(status: str, code: int | None = None, message: str = "") -> Answer:
    return 200, {"status": status, "driver_exit_code": code, "message": message}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return run_folder.create(EvaluateSpec(model="m", name="mine"), str(tmp_path))


@pytest.fixture
def follow(run: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str]]:
    """Follow a job whose server gives these answers to questions about it, the last for ever."""
    monkeypatch.setattr(cluster_job, "POLL", 0.02)

    def with_answers(*answers: Answer, text: str = "", streams: Any = lambda shown: None) -> tuple[int, str]:
        rest = list(answers)

        def answer(path: str) -> Answer:
            if path.endswith("/logs"):
                return 200, {"logs": text}
            return rest.pop(0) if len(rest) > 1 else rest[0]

        out = io.StringIO()
        monkeypatch.setattr(cluster_job, "stream_lines", lambda address, job, shown: (shown.restart(), streams(shown)))
        with serving(answer) as server:
            code = cluster_job.follow("evaluate", run, server.address, "mine-1", out)
        return code, out.getvalue()

    return with_answers


@pytest.mark.parametrize(
    ("last", "code", "said"),
    [
        (ended("SUCCEEDED", 0), 0, ""),
        (ended("STOPPED"), 3, "stopped; continue with: rwkvctl evaluate --resume "),
        (ended("FAILED", 2), 2, ""),
        (ended("FAILED", 3), 3, ""),
        (ended("FAILED", 75), 75, ""),
        (ended("FAILED", -9), 1, ""),
        (ended("FAILED", None, "runtime_env setup failed"), 1, "failed: runtime_env setup failed"),
        ((404, "no such job"), 1, "failed: the cluster no longer knows the job"),
    ],
)
def test_the_exit_code_is_the_drivers_own(
    follow: Callable[..., tuple[int, str]], last: Answer, code: int, said: str, capsys: pytest.CaptureFixture[str]
):
    assert follow(RUNNING, last)[0] == code
    err = capsys.readouterr().err
    assert err.startswith(said)
    assert bool(err) == bool(said)


def test_a_stream_that_breaks_off_is_taken_up_where_it_was(follow: Callable[..., tuple[int, str]]):
    text = OPENING + "".join(f"line {number}\n" for number in range(5))
    ends = iter((20, len(OPENING) + 3, len(OPENING) + 10, len(text) - 3))
    code, shown = follow(
        *[RUNNING] * 4, ended("SUCCEEDED", 0), text=text, streams=lambda shown: shown.add(text[: next(ends)])
    )
    assert (code, shown) == (0, text.removeprefix(OPENING))


def test_a_log_without_an_opening_is_shown_whole(follow: Callable[..., tuple[int, str]]):
    assert follow(ended("FAILED", 1), text="short\n") == (1, "short\n")


def test_a_server_that_is_away_for_a_while_ends_nothing(
    follow: Callable[..., tuple[int, str]], capsys: pytest.CaptureFixture[str]
):
    away = [(503, "busy"), (0, ""), (200, "<html>")]
    assert follow(RUNNING, *away, RUNNING, ended("SUCCEEDED", 0))[0] == 0
    lines = capsys.readouterr().err.splitlines()
    assert ["does not answer" in line for line in lines] == [True, False]
    assert lines[1].endswith(" answers again")


def test_a_server_that_stays_away_may_be_tried_again(
    follow: Callable[..., tuple[int, str]], run: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(cluster_job, "LOST_AFTER", 0.05)
    with pytest.raises(TransientError, match=rf"come back with rwkvctl run logs -f {run}") as error:
        follow(RUNNING, (0, ""))
    assert error.value.exit_code == 75


# The states of runs on clusters ---------------------------------------------------------------------------------------


@pytest.fixture
def submitted(run: Path) -> Callable[[str], None]:
    return lambda address: job_record.submitted(run, address=address, submission_id="mine-1")


@pytest.mark.parametrize(
    ("answer", "state", "reason"),
    [
        (ended("PENDING", None, "waiting for CPUs"), "queued", "waiting for CPUs"),
        (RUNNING, "running", "starting"),
        (ended("SUCCEEDED", 0), "done", ""),
        (ended("STOPPED"), "stopped", ""),
        (ended("FAILED", 130), "interrupted", ""),
        (ended("FAILED", 75), "failed", "exit code 75"),
        (ended("FAILED", None, "no such node"), "failed", "no such node"),
        ((404, ""), "interrupted", "the cluster no longer knows the job"),
        ((500, ""), "queued", "cluster does not answer"),
        ((0, ""), "queued", "cluster does not answer"),
        ((403, ""), "queued", "cluster refuses the token"),
    ],
)
def test_the_server_is_asked_for_what_the_folder_does_not_tell(
    run: Path, submitted: Callable[[str], None], answer: Answer, state: str, reason: str
):
    with serving(lambda path: answer) as server:
        submitted(server.address)
        found = observe.one(run)
    assert (found.state, found.reason) == (state, reason)


def test_a_silent_cluster_is_asked_once(run: Path, submitted: Callable[[str], None]):
    with serving(lambda path: (0, "")) as server:
        submitted(server.address)
        found = observe.observe([run, run, run])
        assert [row.reason for row in found] == ["cluster does not answer"] * 3
        assert len(server.calls) == 1


def test_a_queued_job_is_stopped_through_the_server(
    run: Path, submitted: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(stop_run, "POLL", 0.01)
    with serving(lambda path: RUNNING) as server:
        server.answers = lambda path: (
            (200, {"stopped": True})
            if path.endswith("/stop")
            else ended("STOPPED" if "POST /api/jobs/mine-1/stop" in server.calls else "PENDING")
        )
        submitted(server.address)
        assert stop_run.stop_run(run, now=False, say=print).state == "stopped"
    assert not (run / "stop.json").exists()
    job_record.note(run, exit_code=3)
    with pytest.raises(UserError, match="run mine: is not running"):
        stop_run.stop_run(run, now=False, say=print)


# What is sent ---------------------------------------------------------------------------------------------------------


def test_tokens_travel_in_variables_alone(monkeypatch: pytest.MonkeyPatch):
    given = {
        "RAY_AUTH_TOKEN": "hunter2-ray",
        "MLFLOW_TRACKING_PASSWORD": "hunter2-mlflow",
        "AWS_SECRET_ACCESS_KEY": "hunter2-s3",
        "AWS_PROFILE": "hunter2-of-this-machine",
        "GITHUB_TOKEN": "hunter2-of-somebody-else",
    }
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    spec = EvaluateSpec(model="m", name="mine")
    sent: Any = ship.runtime_env(spec, "mine-1")
    assert {name: value for name, value in sent["env_vars"].items() if "hunter2" in value} == dict(
        list(given.items())[:3]
    )
    rest = {**sent, "env_vars": {}, "metadata": ship.metadata(spec, "mine"), "entrypoint": ship.entrypoint("x", Path())}
    assert "hunter2" not in str(rest)
    assert cluster_job.short(RuntimeError("400: got hunter2-ray\n" * 50)).startswith("400: got *** 400")


def test_a_secret_that_ray_would_change_is_refused(monkeypatch: pytest.MonkeyPatch):
    for harmless in ("a$", "$$", "50$ off"):
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", harmless)
        assert ship.secrets()["MLFLOW_TRACKING_PASSWORD"] == harmless
    for changed in ("pa$HOME", "pa${X}"):
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", changed)
        with pytest.raises(UserError, match=r"^MLFLOW_TRACKING_PASSWORD: Ray would replace") as error:
            ship.secrets()
        assert changed not in str(error.value)


def test_the_token_of_a_file_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "token").write_text("of-a-file\n")
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    with serving(lambda path: (200, {"ray_version": "2.60.0"})) as server:
        assert JobServer(server.address).version() == "2.60.0"
        assert server.headers[0]["Authorization"] == "Bearer of-a-file"
