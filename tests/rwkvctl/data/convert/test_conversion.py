"""Conversion on several processes, killed and run again: always the same bytes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rwkvctl.base.errors import UserError
from rwkvctl.data.convert import conversion
from rwkvctl.data.convert.prepare import prepare
from rwkvctl.data.store.writer import Limits

SMALL_SHARDS = Limits(samples=4)


def tree(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Limits.__init__, "__defaults__", (4, 1 << 30))


def test_workers_give_the_same_bytes(polyps: Path, tmp_path: Path):
    counts: list[tuple[int, int]] = []
    alone = prepare("folder", [polyps], tmp_path / "a", name="same", workers=1)
    many = prepare(
        "folder", [polyps], tmp_path / "b", name="same", workers=2, progress=lambda _, *done: counts.append(done)
    )
    assert len(many.shards) == 5
    assert tree(Path(alone.root)) == tree(Path(many.root))
    assert sorted(counts)[-1] == (20, 20)


@pytest.mark.parametrize("small", [True, False])
def test_problems_come_back_from_workers(polyps: Path, tmp_path: Path, small: bool, monkeypatch: pytest.MonkeyPatch):
    """What is soon done again leaves nothing behind; of a large set, finished shards stay."""
    import shutil

    if not small:
        monkeypatch.setattr(conversion, "SMALL", 0)

    source = Path(shutil.copytree(polyps, tmp_path / "source"))
    for n in (3, 17):
        (source / "images" / f"{n}.jpg").write_bytes(b"\xff\xd8\xff broken")
    with pytest.raises(UserError, match="2 problems, nothing was written") as caught:
        prepare("folder", [source], tmp_path / "out", workers=2)
    lines = str(caught.value).splitlines()
    assert "images/3.jpg: corrupt image" in lines[1]
    assert "images/17.jpg: corrupt image" in lines[2]
    kept = [path.name for path in tmp_path.iterdir() if path.name != "source"]
    assert kept == ([] if small else [".out.partial"])
    if small:
        assert len(lines) == 3
    else:
        assert lines[3].endswith(".out.partial: run the same command again")
        assert "3 finished shards are kept" in lines[3]


def shards_written(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The shards that are really written from here on."""
    written: list[str] = []
    real = conversion.write_shard
    monkeypatch.setattr(
        conversion, "write_shard", lambda folder, stem, s: written.append(stem) or real(folder, stem, s)
    )
    return written


def test_only_what_changed_is_converted_again(polyps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import shutil

    monkeypatch.setattr(conversion, "SMALL", 0)  # where shards are worth keeping
    expected = prepare("folder", [polyps], tmp_path / "expected", name="same")
    source = Path(shutil.copytree(polyps, tmp_path / "source"))
    good = (source / "images" / "9.jpg").read_bytes()
    (source / "images" / "9.jpg").write_bytes(good[:-100] + b"x" * 100)
    (source / "images" / "10.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"10\.jpg: empty file"):
        prepare("folder", [source], tmp_path / "out", name="same", workers=1)
    (source / "images" / "9.jpg").write_bytes(good)
    shutil.copy(polyps / "images" / "10.jpg", source / "images" / "10.jpg")
    partial = tmp_path / ".out.partial"
    kept = partial / "all-000003.tar"
    kept.write_bytes(kept.read_bytes()[:-1] + b"x")  # damaged meanwhile
    (partial / "all-000077.tar").write_bytes(b"of another run")
    written = shards_written(monkeypatch)
    made = prepare("folder", [source], tmp_path / "out", name="same", workers=1)
    assert written == ["all-000002", "all-000003"]
    assert tree(Path(made.root)) == tree(Path(expected.root))
    assert not partial.exists()


def test_other_choices_reuse_nothing(polyps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare("folder", [polyps], tmp_path / "out", name="one", progress=interrupted)
    assert len(list((tmp_path / ".out.partial" / "records").iterdir())) == 1
    written = shards_written(monkeypatch)
    assert prepare("folder", [polyps], tmp_path / "out", name="two").dataset == "two"
    assert len(written) == 5


SLOW = """
import sys, time
from rwkvctl.data.convert import conversion
from rwkvctl.data.convert.prepare import prepare
from rwkvctl.data.store.writer import Limits
Limits.__init__.__defaults__ = (4, 1 << 30)
real = conversion.run
def slow(job):
    if job.stem == "all-000003":
        print("held", flush=True)
        time.sleep(60)
    return real(job)
conversion.run = slow
prepare("folder", [sys.argv[1]], sys.argv[2], name="same", workers=1)
"""


def test_killed_and_run_again(polyps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    expected = prepare("folder", [polyps], tmp_path / "expected", name="same")
    out = tmp_path / "out"
    with subprocess.Popen([sys.executable, "-c", SLOW, str(polyps), str(out)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match="is being prepared by another process"):
            prepare("folder", [polyps], out, name="same")
        process.send_signal(signal.SIGKILL)
    assert not out.exists()
    (tmp_path / ".out.partial" / ".all-000003.tar.4711.tmp").write_bytes(b"half a shard")
    written = shards_written(monkeypatch)
    made = prepare("folder", [polyps], out, name="same")
    assert written == ["all-000003", "all-000004"]
    assert tree(Path(made.root)) == tree(Path(expected.root))


def test_workers_end_with_their_parent(polyps: Path, tmp_path: Path):
    code = """
import multiprocessing, os, time
from concurrent.futures import ProcessPoolExecutor
from rwkvctl.base.processes import end_with_parent
if __name__ == "__main__":
    pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=end_with_parent)
    print(pool.submit(os.getpid).result(), flush=True)
    time.sleep(60)
"""
    script = tmp_path / "parent.py"
    script.write_text(code)
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        worker = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
    for _ in range(200):
        if not Path(f"/proc/{worker}").exists() or _state(worker) == "Z":
            return
        time.sleep(0.05)
    os.kill(worker, signal.SIGKILL)
    pytest.fail("the worker lives on")


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_records_tell_their_job(polyps: Path, tmp_path: Path):
    with pytest.raises(KeyboardInterrupt):
        prepare("folder", [polyps], tmp_path / "out", progress=_raise)
    record = json.loads(next((tmp_path / ".out.partial" / "records").iterdir()).read_bytes())
    assert record["shard"]["name"] == "all-000000.tar"
    assert len(record["samples"]) == 4


def _raise(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_full_disk_is_one_line(polyps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(conversion, "write_shard", full)
    with pytest.raises(UserError, match=r"--out .*/out: cannot be written \(No space left on device\)$"):
        prepare("folder", [polyps], tmp_path / "out")
    assert not list(tmp_path.glob(".out*"))


def test_an_overwrite_that_was_killed_between_its_renames_loses_nothing(polyps: Path, tmp_path: Path):
    made = prepare("folder", [polyps], tmp_path / "out", name="same")
    before = tree(Path(made.root))
    (tmp_path / "out").rename(tmp_path / ".out.old")
    with pytest.raises(KeyboardInterrupt):
        prepare("folder", [polyps], tmp_path / "out", name="other", overwrite=True, progress=_raise)
    assert tree(tmp_path / "out") == before
