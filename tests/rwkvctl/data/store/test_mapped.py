"""Arrays in the cache that processes share: whole or made again, never trusted, and small when they are handed on."""

from __future__ import annotations

import errno
import os
import pickle
import threading
from pathlib import Path

import numpy as np
import pytest

from rwkvctl.base import files
from rwkvctl.base.errors import UserError
from rwkvctl.data.store import mapped

RECORDS = np.zeros(5000, np.dtype([("key", "S11"), ("shard", np.int32), ("place", np.int64, (3,))], align=True))
RECORDS["key"] = [b"k%d" % number for number in range(5000)]
RECORDS["place"] = np.arange(15000).reshape(5000, 3)


def never() -> np.ndarray:
    return pytest.fail("made again")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "x.npy"


def test_an_array_is_made_once_and_mapped(path: Path):
    first = mapped.keep(path, lambda: RECORDS)
    for kept in (first, mapped.keep(path, never), mapped.find(path)):
        assert kept is not None
        assert kept.path == path
        assert isinstance(kept.array.base, np.memmap)
        assert (kept.array == RECORDS).all()
        assert kept.array.dtype == RECORDS.dtype
        with pytest.raises(ValueError, match="read-only"):
            kept.array["shard"][0] = 7
    assert (np.load(path) == RECORDS).all(), "any program can read it"
    assert [entry.name for entry in path.parent.iterdir() if not entry.name.startswith(".")] == ["x.npy"]


def test_what_is_handed_on_is_the_name(path: Path):
    kept = mapped.keep(path, lambda: RECORDS)
    sent = pickle.dumps(kept)
    assert len(sent) < 400
    there = pickle.loads(sent)
    assert isinstance(there.array.base, np.memmap)
    assert (there.array == RECORDS).all()


DAMAGE = {
    "nothing": lambda data: b"",
    "a byte": lambda data: data[:1],
    "only a checksum": lambda data: data[-4:],
    "cut short": lambda data: data[:-200],
    "without its checksum": lambda data: data[:-4],
    "longer": lambda data: data + b"\0",
    "the header": lambda data: data.replace(b"5000", b"4999"),
    "a record": lambda data: data.replace(b"k77\0", b"k78\0"),
    "the checksum": lambda data: data[:-1] + bytes([data[-1] ^ 1]),
    "a pickle": lambda data: pickle.dumps(RECORDS),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_file_is_made_again(path: Path, damage):
    mapped.keep(path, lambda: RECORDS)
    good = path.read_bytes()
    assert damage(good) != good
    path.unlink()
    path.write_bytes(damage(good))
    assert mapped.find(path) is None
    assert (mapped.keep(path, lambda: RECORDS).array == RECORDS).all()
    assert path.read_bytes() == good


def test_a_file_that_is_gone_when_it_is_handed_on_is_sent_whole(path: Path):
    kept = mapped.keep(path, lambda: RECORDS)
    path.unlink()
    there = pickle.loads(pickle.dumps(kept))
    assert there.path is None
    assert (there.array == RECORDS).all()


@pytest.mark.parametrize("change", [Path.unlink, lambda path: files.write_bytes(path, path.read_bytes())])
def test_a_file_that_changes_on_the_way_is_one_line(path: Path, change):
    sent = pickle.dumps(mapped.keep(path, lambda: RECORDS))
    change(path)
    with pytest.raises(UserError, match=r"x\.npy: was removed or changed while processes were started on it; start"):
        pickle.loads(sent)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_takes_nothing(path: Path, code: int, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(files, "atomic_open", refuse)
    kept = mapped.keep(path, lambda: RECORDS)
    assert kept.path is None
    assert (pickle.loads(pickle.dumps(kept)).array == RECORDS).all()


def test_a_disk_that_cannot_map(path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))

    monkeypatch.setattr(np, "load", refuse)
    assert mapped.keep(path, lambda: RECORDS).path is None


def test_of_several_at_once_one_makes_it(path: Path):
    made, start = [], threading.Barrier(4)

    def work() -> None:
        start.wait()
        mapped.keep(path, lambda: made.append(1) or RECORDS)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert mapped.find(path) is not None
