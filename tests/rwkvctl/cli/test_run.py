"""`rwkvctl run`: what it shows of runs, and what it refuses to do with them."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from rwkvctl.base import identity
from rwkvctl.cli import execute
from rwkvctl.config.specs.jobs import EvaluateSpec
from rwkvctl.runs import folder as run_folder
from rwkvctl.runs import job_record
from rwkvctl.runs.journal import Journal


@pytest.fixture
def runs(home: Path) -> Path:
    """Three runs: one at work in this process, one that has failed, one on a cluster that is not there."""
    storage = home / "runs"
    for name in ("at-work", "failed", "away"):
        run_folder.create(EvaluateSpec(model="m", name=name), str(storage))
    with Journal(storage / "at-work" / "journal.jsonl") as journal:
        job_record.begun(storage / "at-work")
        journal.event("start")
        journal.event("message", text="run at-work in /x")
        journal.event("plan", epochs=2, steps_per_epoch=10, step=0)
        values = {"train/loss": 0.5, "train/lr": 1e-3, "train/grad_norm": 2.0, "train/images_per_second": 40.0}
        journal.metrics(values, 7)
        journal.event("validation", epoch=1, step=10, dsc=0.8125)
    job_record.submitted(storage / "failed")
    job_record.ended(storage / "failed", 75, "node gpu3 does not answer")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    job_record.submitted(storage / "away", address=f"http://127.0.0.1:{port}", submission_id="away-1")
    return storage


def test_list(rwkvctl, runs: Path):
    table = rwkvctl("run list").out.splitlines()
    assert table[0].split() == ["RUN", "JOB", "STATE", "STEP", "LAST", "METRIC", "AGE", "WHERE", "WHY"]
    rows = {line.split()[0]: line for line in table[1:]}
    assert rows["at-work"].split()[1:6] == ["evaluate", "running", "7/20", "val/dsc", "0.8125"]
    assert rows["failed"].endswith("node gpu3 does not answer")
    assert rows["away"].endswith("cluster does not answer")
    assert " queued " in rows["away"]
    found = {row["run"]: row for row in json.loads(rwkvctl("run list --json").out)}
    assert [found[name]["state"] for name in ("at-work", "failed", "away")] == ["running", "failed", "queued"]
    assert {"run", "job", "state"} <= found["failed"].keys()
    assert json.loads(rwkvctl("runs --json").out)[0].keys() == found["failed"].keys()


def test_show(rwkvctl, runs: Path):
    shown = dict(line.split(maxsplit=1) for line in rwkvctl("run show at-work").out.splitlines())
    assert (shown["state"], shown["step"], shown["folder"]) == ("running", "7/20", str(runs / "at-work"))
    assert "  rwkvctl run stop at-work" in rwkvctl("run show at-work").out.splitlines()
    assert "failed (node gpu3 does not answer)" in rwkvctl("run show failed").out
    found = json.loads(rwkvctl("run show failed --json").out)
    assert (found["exit_code"], found["spec"]["model"]) == (75, "m")


def test_logs(rwkvctl, runs: Path):
    assert rwkvctl("run logs at-work").out.splitlines() == [
        "run at-work in /x",
        "step 7/20  loss 0.5000  lr 1.00e-03  grad 2.000  40.0 img/s",
        "epoch 1  dsc 0.8125",
    ]
    assert json.loads(rwkvctl("run logs at-work --json").out.splitlines()[0])["kind"] == "journal"
    done = rwkvctl("run logs away")
    assert (done.code, done.out, "the cluster does not answer" in done.err) == (0, "", True)
    (runs / "failed" / "output.log").write_bytes(b"what it printed\xff\n")
    job_record.note(runs / "failed", detached=True)
    done = rwkvctl("run logs failed -f")
    assert (done.code, done.out) == (75, "what it printed\ufffd\n")


def test_wait(rwkvctl, runs: Path):
    done = rwkvctl("run wait failed")
    assert (done.code, done.out) == (75, "failed: failed (node gpu3 does not answer)\n")
    for code in (0, 2, 3, 130):
        job_record.note(runs / "failed", exit_code=code)
        assert rwkvctl("run wait failed --json").code == code
    assert rwkvctl("run wait nowhere").code == 4


def test_a_run_is_deleted_when_it_is_said_twice(rwkvctl, runs: Path):
    done = rwkvctl("run rm failed")
    assert (done.code, (runs / "failed").exists()) == (2, True)
    assert done.err.startswith(f"error: run failed: this would delete {runs / 'failed'} (2 files, ")
    assert done.err.endswith("; add --yes to delete it\n")
    assert rwkvctl("run rm failed --yes").out.startswith(f"deleted {runs / 'failed'} (2 files, ")
    assert not (runs / "failed").exists()
    for name, state in (("at-work", "running"), ("away", "queued")):
        done = rwkvctl(f"run rm {name} --yes")
        assert done.err == f"error: run {name}: is {state}; stop it first with: rwkvctl run stop {name}\n"
        assert (runs / name).exists()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("stop failed", "run failed: is not running (failed); there is nothing to stop"),
        (
            "resume failed",
            "run failed: a job of kind evaluate has no checkpoints; start it anew with: rwkvctl run rerun",
        ),
        ("resume nowhere", "run 'nowhere' is not in "),
    ],
)
def test_what_cannot_be_done_is_refused(rwkvctl, runs: Path, line: str, said: str):
    done = rwkvctl(f"run {line}")
    assert done.code in (2, 4)
    assert said in done.err
    assert len(done.err.splitlines()) == 1


def test_a_run_that_is_going_on_is_not_resumed(rwkvctl, binary, runs: Path, monkeypatch: pytest.MonkeyPatch):
    submitted: list[tuple[str, bool]] = []

    def submit(spec, run_dir, **options):
        submitted.append((run_dir.name, options["detach"]))
        return 3

    monkeypatch.setattr(execute, "submit", submit)
    started = rwkvctl(f"finetune binary --data {binary.root} --name mine --set cluster.launcher=process")
    assert (started.code, submitted) == (3, [("mine", False)])
    job_record.note(runs / "mine", process=identity.of_process())
    for line in ("run resume mine", "finetune --resume mine"):
        done = rwkvctl(line)
        assert done.code == 2
        assert done.err == (
            "error: run mine: is running; follow it with: rwkvctl run logs -f mine, "
            "or stop it with: rwkvctl run stop mine\n"
        )
    job_record.note(runs / "mine", exit_code=3)
    assert rwkvctl("run resume mine --detach").code == 3
    assert rwkvctl("run rerun mine --name again").code == 3
    assert submitted[1:] == [("mine", True), ("again", False)]
    assert run_folder.differences(run_folder.read_spec(runs / "mine"), run_folder.read_spec(runs / "again")) == []


@pytest.mark.slow
def test_a_detached_run_goes_on_by_itself(rwkvctl, binary, home: Path):
    """As a process of a session of its own; it is followed, stopped and resumed by name."""
    small = "--set model.name=rwkv_unet_xt --set data.image_size=32 --set data.workers=0 --set train.batch_size=4"
    more = "--set train.log_steps=1 --set cluster.launcher=process --set train.epochs=2000 --detach"
    done = rwkvctl(f"finetune binary --data {binary.root} --name mine {small} {more}")
    assert (done.code, done.out.splitlines()[:3]) == (
        0,
        ["run mine is started", "Useful commands", "  follow  rwkvctl run logs -f mine"],
    )
    run_dir = home / "runs" / "mine"
    command = [sys.executable, "-P", "-m", "rwkvctl.cli.app", "run", "logs", "-f", "mine"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as follower:
        assert follower.stdout is not None
        try:
            for line in follower.stdout:
                if line.startswith("step "):
                    break
            else:
                pytest.fail((run_dir / "output.log").read_text())
            stopped = rwkvctl("run stop mine")
            assert follower.wait() == 3
        finally:
            follower.kill()
    assert stopped.code == 0, stopped.err
    assert stopped.out.startswith("run mine: stopped at step ")
    assert stopped.out.endswith("; continue with: rwkvctl run resume mine\n")
    assert rwkvctl("run wait mine").code == 3
    assert (run_dir / "output.log").read_text().endswith("stopped; continue with: rwkvctl finetune --resume mine\n")
