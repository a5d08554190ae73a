"""What TensorBoard and Weights & Biases show of a run is its journal, once, whatever broke on the way.

Read back with TensorBoard's own reader, and from W&B's offline file as its own program reads it.
"""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rwkvctl.base.errors import UserError
from rwkvctl.base.files import locked_or_refused
from rwkvctl.config import settings
from rwkvctl.config.specs.jobs import EvaluateSpec, PredictSpec
from rwkvctl.config.specs.load import dump
from rwkvctl.launch import preflight
from rwkvctl.launch.complete_spec import on_machine
from rwkvctl.runs import journal_mirrors, wandb_run
from rwkvctl.runs.journal import Journal
from rwkvctl.runs.journal_mirrors import JournalMirrors
from rwkvctl.runs.lease import RunLease
from rwkvctl.runs.tensorboard_events import EventFiles

from .test_export import in_child

Points = list[tuple[str, int, str]]
"""(key, step, value), sorted; values as text, so that NaN is itself."""


@pytest.fixture(autouse=True)
def nobody_logged_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "night"
    folder.mkdir(parents=True)
    spec = EvaluateSpec(model="m", data="/data/acdc", part="test", name="night")
    (folder / "spec.yaml").write_text(dump(spec))
    return folder


def write(run_dir: Path, steps: range, **more: float) -> None:
    with Journal(run_dir / "journal.jsonl") as journal:
        journal.event("start")
        for step in steps:
            journal.metrics({"train/loss": 1 / (1 + step), "val/dsc class a": float(step)} | more, step)
        journal.event("end", status="FINISHED")


def mirror(run_dir: Path, *names: str) -> JournalMirrors:
    mirrors = JournalMirrors(run_dir, names)
    assert mirrors.write_all()
    return mirrors


def in_journal(run_dir: Path) -> Points:
    lines = [json.loads(line) for line in (run_dir / "journal.jsonl").read_text().splitlines()]
    metrics = [line for line in lines if line["kind"] == "metrics"]
    return sorted((key, m["step"], single(value)) for m in metrics for key, value in m["values"].items())


def single(value: float | str) -> str:
    """As an event file keeps it, in single precision."""
    return str(struct.unpack("f", struct.pack("f", float(value)))[0])


def in_tensorboard(run_dir: Path) -> Points:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"scalars": 0}, purge_orphaned_data=False)
    found.Reload()
    return sorted(
        (key, event.step, single(event.value)) for key in found.Tags()["scalars"] for event in found.Scalars(key)
    )


def records(path: Path) -> Iterator[bytes]:
    """The records of a .wandb file: LevelDB's log in blocks of 32 KiB, behind a header of 7 bytes."""
    content, position, whole = path.read_bytes(), 7, b""
    assert content.startswith(b":W&B")
    while position + 7 <= len(content):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        _, size, kind = struct.unpack("<IHB", content[position : position + 7])
        whole += content[position + 7 : position + 7 + size]
        position += 7 + size
        if kind in (1, 4):  # the only, or the last part
            yield whole
            whole = b""


def in_wandb(run_dir: Path) -> tuple[Points, dict, list[str]]:
    """The points of the only offline run, its config, and what identifies it."""
    from wandb.proto.wandb_internal_pb2 import Record

    [path] = (run_dir / "wandb").glob("offline-run-*/*.wandb")
    deadline = time.monotonic() + 300
    found = []  # W&B's own process writes the end of the file after `finish` has returned
    while not any(record.HasField("exit") for record in found) and time.monotonic() < deadline:
        time.sleep(0.01)
        found = [Record.FromString(content) for content in records(path)]
    points: Points = []
    steps, config, name = [], {}, []
    for record in found:
        if record.WhichOneof("record_type") == "run" and not name:
            name = [record.run.run_id, record.run.display_name, record.run.project, record.run.job_type]
            config = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.run.config.update}
        if record.WhichOneof("record_type") == "history":
            row = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            step = row.pop("step")
            steps.append(row.pop("_step"))
            points += [(key, step, single(value)) for key, value in row.items() if not key.startswith("_")]
    assert steps == list(range(len(steps)))
    return sorted(points), config, name


def test_both_show_the_journal(run_dir: Path) -> None:
    write(run_dir, range(5))
    write(run_dir, range(3, 9), odd=math.nan, up=math.inf)
    mirrors = mirror(run_dir, "tensorboard", "wandb")
    assert not mirrors.failed
    expected = in_journal(run_dir)
    assert len(expected) == 2 * 9 + 2 * 6
    assert in_tensorboard(run_dir) == expected
    points, config, name = in_wandb(run_dir)
    assert points == expected
    uid = json.loads((run_dir / "journal.jsonl").read_text().splitlines()[0])["uid"]
    assert name == [uid, "night", "rwkvctl", "evaluate"]
    assert (config["model"], config["data"], config["tracking.experiment"]) == ("m", "/data/acdc", "rwkvctl")


def test_while_the_run_is_going_and_when_it_goes_on(run_dir: Path) -> None:
    """Twice, as two starts of the run; the second repeats steps and begins new ones."""
    for steps in (range(4), range(2, 8)):
        mirrors = JournalMirrors(run_dir, ("tensorboard", "wandb"))
        mirrors.start(interval=0.01)
        write(run_dir, steps)
        deadline = time.monotonic() + 300
        while not list((run_dir / "tensorboard").glob("events*")) and time.monotonic() < deadline:
            time.sleep(0.01)
        mirrors.close(300)
        assert in_tensorboard(run_dir) == in_wandb(run_dir)[0] == in_journal(run_dir)
    assert len(list((run_dir / "tensorboard").glob("events*"))) == 2


@pytest.mark.parametrize("moment", ["before the state", "with half a record", "after the state"])
def test_killed_while_writing_each_point_is_there_once(run_dir: Path, moment: str) -> None:
    def killed() -> None:
        files = EventFiles(run_dir)
        mirrors = JournalMirrors(run_dir, ("tensorboard",))
        mirrors._catch_up(files)
        write(run_dir, range(5, 9))
        if moment == "after the state":
            mirrors._catch_up(files)
        else:
            state = (run_dir / "tensorboard" / "state.json").read_bytes()
            mirrors._catch_up(files)
            (run_dir / "tensorboard" / "state.json").write_bytes(state)
        if moment == "with half a record":
            os.truncate(files._path, files._path.stat().st_size - 9)
        os.kill(os.getpid(), signal.SIGKILL)

    write(run_dir, range(5))
    assert in_child(killed) == signal.SIGKILL
    write(run_dir, range(9, 12))
    mirror(run_dir, "tensorboard")
    assert in_tensorboard(run_dir) == in_journal(run_dir)
    assert len(in_journal(run_dir)) == 24


def test_points_that_the_journal_has_lost_are_taken_back(run_dir: Path) -> None:
    """As after a power cut: the run goes on from an earlier line, and computes something else."""
    write(run_dir, range(5))
    size = (run_dir / "journal.jsonl").stat().st_size
    write(run_dir, range(5, 9))
    mirror(run_dir, "tensorboard", "wandb")
    (run_dir / "tensorboard" / "notes.txt").write_text("mine")
    os.truncate(run_dir / "journal.jsonl", size)
    with Journal(run_dir / "journal.jsonl") as journal:
        for step in range(5, 30):
            journal.metrics({"train/loss": -1.0}, step)
    mirror(run_dir, "tensorboard", "wandb")
    assert in_tensorboard(run_dir) == in_wandb(run_dir)[0] == in_journal(run_dir)
    assert (run_dir / "tensorboard" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("broken", ["a lost file", "a short file", "a damaged state"])
def test_damaged_event_files_are_made_anew(run_dir: Path, broken: str) -> None:
    write(run_dir, range(5))
    mirror(run_dir, "tensorboard")
    [events] = (run_dir / "tensorboard").glob("events*")
    if broken == "a lost file":
        events.unlink()
    elif broken == "a short file":
        os.truncate(events, 40)
    else:
        (run_dir / "tensorboard" / "state.json").write_text('{"files": 3}')
    write(run_dir, range(5, 7))
    mirror(run_dir, "tensorboard")
    assert in_tensorboard(run_dir) == in_journal(run_dir)


def test_one_that_fails_is_one_warning_and_the_other_goes_on(run_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    (run_dir / "tensorboard").write_text("a file in the way")
    mirrors = JournalMirrors(run_dir, ("tensorboard", "wandb"))
    with caplog.at_level(logging.WARNING, "rwkvctl"):
        mirrors.start(interval=0.01)
        write(run_dir, range(50))
        mirrors.close(300)
    texts = [record.getMessage() for record in caplog.records if record.name == "rwkvctl"]
    assert len(texts) == 1
    assert texts[0].startswith("tensorboard of night: ")
    assert texts[0].endswith("the run goes on without it; write it later with: rwkvctl sync night")
    assert in_wandb(run_dir)[0] == in_journal(run_dir)


def test_a_full_disk_is_one_warning_and_is_caught_up_with(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from tensorboardX import record_writer

    with monkeypatch.context() as patch:
        patch.setattr(record_writer, "open_file", lambda path: Path("/dev/full").open("wb"))  # noqa: SIM115
        mirrors = JournalMirrors(run_dir, ("tensorboard",))
        with caplog.at_level(logging.WARNING, "rwkvctl"):
            mirrors.start(interval=0.01)
            write(run_dir, range(500))
            mirrors.close(300)
    [text] = [record.getMessage() for record in caplog.records if record.name == "rwkvctl"]
    assert "No space left on device" in text
    mirror(run_dir, "tensorboard")
    assert in_tensorboard(run_dir) == in_journal(run_dir)


def test_a_server_of_wandb_that_says_nothing_holds_nothing_up(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(wandb_run, "ANSWERS_WITHIN", 1.0)
    with socket.create_server(("127.0.0.1", 0), backlog=64) as silent:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
        mirrors = JournalMirrors(run_dir, ("wandb",))
        with caplog.at_level(logging.WARNING, "rwkvctl"):
            mirrors.start(interval=0.01)
            begun = time.monotonic()
            write(run_dir, range(50))
            assert time.monotonic() - begun < 60
            mirrors.close(300)
    [text] = [record.getMessage() for record in caplog.records if record.name == "rwkvctl"]
    assert text.startswith("wandb of night: ")
    assert "a" * 40 not in text


def test_what_another_process_is_writing_is_left_to_it(run_dir: Path) -> None:
    write(run_dir, range(3))
    with locked_or_refused(run_dir / "mirrors") as ours:
        assert ours
        assert not JournalMirrors(run_dir, ("tensorboard",)).write_all()
        waiting = JournalMirrors(run_dir, ("tensorboard",))
        waiting.start(interval=0.01)
        assert not (run_dir / "tensorboard").exists()
    deadline = time.monotonic() + 300
    while not (run_dir / "tensorboard" / "state.json").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    waiting.close(300)
    assert in_tensorboard(run_dir) == in_journal(run_dir)


@pytest.mark.parametrize(
    ("environment", "netrc", "expected"),
    [
        ({}, "", "offline"),
        ({}, "machine api.wandb.ai\n  login user\n  password x\n", "online"),
        ({"WANDB_BASE_URL": "https://wandb.lab"}, "machine api.wandb.ai\n  login user\n  password x\n", "offline"),
        ({"WANDB_API_KEY": "x"}, "", "online"),
        ({"WANDB_API_KEY": "x", "WANDB_MODE": "offline"}, "", "offline"),
    ],
)
def test_nothing_leaves_the_machine_of_who_is_not_logged_in(
    environment: dict[str, str], netrc: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if netrc:
        (tmp_path / "netrc").write_text(netrc)
        (tmp_path / "netrc").chmod(0o600)
    assert wandb_run.mode() == expected


def test_config_has_no_secrets(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "geheim1")
    spec = (run_dir / "spec.yaml").read_text()
    (run_dir / "spec.yaml").write_text(spec.replace("model: m", "model: hf_geheim2abcdefghijklmnop"))
    write(run_dir, range(2))
    assert not mirror(run_dir, "wandb").failed
    assert in_wandb(run_dir)[1]["model"] == "***"
    files = [path for path in (run_dir / "wandb").rglob("*") if path.is_file()]
    assert not [path for path in files if b"geheim" in path.read_bytes()]


def test_the_setting_is_taken_unless_the_spec_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    def mirrors(**tracking: object) -> tuple[str, ...] | None:
        spec = EvaluateSpec.model_validate({"model": "m", "data": "d", "part": "test", "tracking": tracking})
        return on_machine(spec, settings.load()).tracking.mirrors

    assert mirrors() == ()
    settings.save("mirrors", " wandb,tensorboard , wandb")
    assert settings.load().mirrors == "wandb,tensorboard"
    assert mirrors() == ("wandb", "tensorboard")
    assert mirrors(mirrors=[]) == ()
    assert mirrors(mirrors="tensorboard") == ("tensorboard",)
    monkeypatch.setenv("RWKVCTL_MIRRORS", "neptune")
    with pytest.raises(UserError, match="RWKVCTL_MIRRORS: 'neptune' is none of tensorboard, wandb"):
        settings.load()
    with pytest.raises(ValueError, match="'tb' is none of"):
        mirrors(mirrors=["tb"])


@pytest.mark.parametrize(
    ("name", "package", "install"),
    [("tensorboard", "tensorboardX", "tensorboardX"), ("wandb", "wandb", "'rwkvctl[wandb]'")],
)
def test_what_is_not_installed_is_refused_before_the_job_starts(
    name: str, package: str, install: str, monkeypatch: pytest.MonkeyPatch, rwkvctl: Callable, home: Path, binary
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setenv("RWKVCTL_MIRRORS", name)
    found = rwkvctl(["finetune", "binary", "--data", str(binary.root), "--set", "data.image_size=32"])
    assert found.code == 2
    assert found.err.splitlines()[-1] == (
        f"error: tracking.mirrors: {name} needs the package {package}, which is not installed: pip install {install}"
    )
    assert not list((home / "runs").glob("*"))


def test_sync_brings_an_old_run_up_to_date(
    run_dir: Path, tracking_uri: str, rwkvctl: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(run_dir, range(3))
    monkeypatch.setenv("RWKVCTL_MIRRORS", "tensorboard,wandb")
    for _ in range(2):
        found = rwkvctl(["sync", str(run_dir)])
        assert found.code == 0, found.err
        assert f"night: tensorboard and wandb up to date in {run_dir}" in found.out
        assert in_tensorboard(run_dir) == in_wandb(run_dir)[0] == in_journal(run_dir)


def test_sync_leaves_the_mirrors_of_a_running_run_alone(
    run_dir: Path, tracking_uri: str, rwkvctl: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose driver may be on another machine, where no lock is seen."""
    write(run_dir, range(3))
    with Journal(run_dir / "journal.jsonl") as journal, RunLease(run_dir):
        journal.event("start")
        monkeypatch.setenv("RWKVCTL_MIRRORS", "tensorboard")
        found = rwkvctl(["sync", str(run_dir)])
    assert "night: the run itself writes tensorboard, and is still running" in found.out
    assert not (run_dir / "tensorboard").exists()


def test_predictions_need_none_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setenv("RWKVCTL_MIRRORS", "wandb")
    spec = PredictSpec(model="m", inputs=["a.png"], out="masks")
    preflight.check_mirrors(on_machine(spec, settings.load()))


def test_packages_are_named_for_every_mirror() -> None:
    from rwkvctl.config.specs.places import MIRRORS

    assert set(journal_mirrors.PACKAGES) == set(MIRRORS)
