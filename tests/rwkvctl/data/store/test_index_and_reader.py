from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest

from rwkvctl.base import paths
from rwkvctl.base.errors import UserError
from rwkvctl.data.convert.formats.base import encode_npy
from rwkvctl.data.store import index
from rwkvctl.data.store.case_reader import reader_for
from rwkvctl.data.store.manifest import Manifest
from rwkvctl.data.store.reader import OPEN_SHARDS, Reader, decode_npy
from rwkvctl.data.store.shards import ShardFiles
from rwkvctl.data.store.writer import write_shard


def line(key="a", members=None) -> bytes:
    return json.dumps({"key": key, "m": {"jpg": [512, 10, 7]} if members is None else members}).encode()


HOSTILE = {
    "not json": b"{",
    "deep": b"[" * 100_000,
    "a list": b"[]",
    "no members": line(members={}),
    "key with a path": line("../../etc/passwd"),
    "key with a dot": line("a.b"),
    "key is a number": line(7),
    "pickle": line(members={"pkl": [512, 10, 7]}),
    "pth": line(members={"pth": [512, 10, 7]}),
    "before the shard": line(members={"jpg": [-1, 10, 7]}),
    "negative size": line(members={"jpg": [512, -10, 7]}),
    "beyond the shard": line(members={"jpg": [4090, 10, 7]}),
    "far beyond": line(members={"jpg": [2**70, 2**70, 7]}),
    "float": line(members={"jpg": [512.0, 10, 7]}),
    "bool": line(members={"jpg": [True, 10, 7]}),
    "two numbers": line(members={"jpg": [1, 2]}),
    "crc of more than 32 bits": line(members={"jpg": [512, 10, 1 << 32]}),
    "not a list": line(members={"jpg": "512"}),
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_index_is_refused_by_line(content: bytes):
    with pytest.raises(UserError, match=r"x\.idx line 2: ") as caught:
        index.load([("x.idx", line("ok") + b"\n" + content, 4096)])
    assert len(str(caught.value)) < 300


def test_duplicates_across_shards_are_refused():
    with pytest.raises(UserError, match="'a' is in the index twice"):
        index.load([("x.idx", line("a"), 4096), ("y.idx", line("a"), 4096)])


def test_rows_and_take():
    loaded = index.load([("x", line("b") + b"\n" + line("a", {"png": [0, 1, 2]}), 4096), ("y", line("c"), 4096)])
    assert loaded.shard.tolist() == [0, 0, 1]
    assert loaded.rows(["c", "a", "b"]).tolist() == [2, 1, 0]
    assert loaded.members["png"].tolist() == [[-1, -1, -1], [0, 1, 2], [-1, -1, -1]]
    taken = loaded.take(loaded.rows(["c", "a"]))
    assert (taken.keys.tolist(), taken.shard.tolist()) == ([b"c", b"a"], [1, 0])
    for unknown in ("0", "bb", "z", "a" * 50):
        with pytest.raises(KeyError, match=unknown):
            loaded.rows(["a", unknown])
    assert len(index.load([])) == 0


@pytest.mark.parametrize(
    "member",
    [
        {"name": "a.jpg", "type": tarfile.SYMTYPE, "linkname": "/etc/passwd"},
        {"name": "a.jpg", "type": tarfile.LNKTYPE, "linkname": "b.jpg"},
        {"name": "a.jpg", "type": tarfile.CHRTYPE},
        {"name": "../a.jpg"},
        {"name": "/a.jpg"},
        {"name": "a.pkl"},
    ],
    ids=str,
)
def test_a_hostile_tar_is_refused(tmp_path: Path, member: dict):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as tar:
        info = tarfile.TarInfo(member["name"])
        info.type = member.get("type", tarfile.REGTYPE)
        info.linkname = member.get("linkname", "")
        tar.addfile(info, io.BytesIO())
    with pytest.raises(ValueError, match="does not belong in a shard"):
        list(index.entries_of_tar(path))


def test_the_index_is_that_of_tarfile(binary: Manifest):
    reader = Reader(binary)
    with tarfile.open(binary.root / binary.shards[0].name) as tar:
        for row in range(len(reader)):
            for extension in ("jpg", "mask.png", "json"):
                member = tar.extractfile(f"{reader.key(row)}.{extension}")
                assert member is not None
                assert member.read() == reader.read(row, extension)


def test_few_files_are_open_and_none_crosses_a_process(tmp_path: Path, binary: Manifest):
    shards = [write_shard(tmp_path, f"p-{n:06d}", [(f"k{n:02d}", {"cls": b"%d" % n})]) for n in range(OPEN_SHARDS + 5)]
    loaded = index.load(
        [(s["name"], (tmp_path / "index" / f"{s['name'][:-4]}.idx").read_bytes(), s["bytes"]) for s in shards]
    )
    reader = Reader(binary)
    named = [binary.shards[0].model_copy(update={"name": s["name"]}) for s in shards]
    reader._index, reader._files = loaded, ShardFiles(tmp_path, named)
    for _ in range(2):
        assert [reader.label(row) for row in range(len(loaded))] == list(range(OPEN_SHARDS + 5))
    assert len(reader._descriptors) == OPEN_SHARDS
    copy = pickle.loads(pickle.dumps(reader))
    assert not copy._descriptors
    assert copy.label(3) == 3
    child = os.fork()
    if child == 0:
        os._exit(0 if reader.label(2) == 2 and len(reader._descriptors) == 1 else 1)
    assert os.waitpid(child, 0)[1] == 0
    reader.close()


def test_a_missing_or_short_shard(classed: Manifest, tmp_path: Path):
    copy = Manifest.load(shutil.copytree(classed.root, tmp_path / "copy"))
    shard = copy.root / copy.shards[0].name
    reader = reader_for(copy, copy.ids(None, "train"))
    os.truncate(shard, 100)
    with pytest.raises(UserError, match=r"train-000000\.tar: .*\.cls: the shard is shorter than its index says"):
        reader.label(0)
    shard.unlink()
    with pytest.raises(UserError, match="cannot be read"):
        reader_for(copy, copy.ids(None, "train")).label(0)


@pytest.mark.parametrize("extension", ["jpg", "mask.png", "json"])
def test_a_flipped_byte_is_said_of_its_sample_alone(binary: Manifest, tmp_path: Path, extension: str):
    copy = Manifest.load(shutil.copytree(binary.root, tmp_path / "copy"))
    reader = Reader(copy)
    offset, size, _ = reader._index.members[extension][3]
    with (copy.root / "all-000000.tar").open("r+b") as shard:
        shard.seek(offset + size // 2)
        byte = shard.read(1)[0]
        shard.seek(-1, os.SEEK_CUR)
        shard.write(bytes([byte ^ 16]))
    with pytest.raises(UserError, match=rf"/all-000000\.tar: {reader.key(3)}\.{extension}: its bytes are not those"):
        reader.read(3, extension)
    for row in {*range(len(reader))} - {3}:
        reader.image(row), reader.mask(row), reader.meta(row)


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if every data set were large."""
    monkeypatch.setattr(index, "CACHED_FROM", 1)


def contents(found: index.Index) -> dict:
    members = {name: where.tolist() for name, where in found.members.items()}
    return {"keys": found.keys.tolist(), "shard": found.shard.tolist(), **members}


@pytest.mark.usefixtures("large")
def test_a_large_index_is_read_once(classed: Manifest, monkeypatch: pytest.MonkeyPatch):
    plain = classed.read_index()
    first = Manifest.load(classed.root).index
    (kept,) = (paths.cache_dir() / "index").glob("*.npy")
    monkeypatch.setattr(Manifest, "read_index", lambda _: pytest.fail("read again"))
    for read in (first, Manifest.load(classed.root).index):
        assert contents(read) == contents(plain)
        assert read.is_mapped
        keys = [key.decode() for key in reversed(plain.keys.tolist())]
        assert read.rows(keys).tolist() == plain.rows(keys).tolist()
    assert kept.stat().st_size


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize(
    "damage", [lambda data: data[:-200], lambda data: data.replace(b"train", b"trail"), lambda _: b""]
)
def test_a_damaged_cache_of_the_index_is_made_again(classed: Manifest, damage):
    whole = contents(Manifest.load(classed.root).index)
    (kept,) = (paths.cache_dir() / "index").glob("*.npy")
    good = kept.read_bytes()
    assert damage(good) != good
    kept.unlink()
    kept.write_bytes(damage(good))
    os.utime(kept, ns=(0, 0))
    assert contents(Manifest.load(classed.root).index) == whole
    assert kept.read_bytes() == good


@pytest.mark.usefixtures("large")
def test_a_process_is_sent_names_of_files_and_reads_the_same(classed: Manifest):
    """Every sample of a part, in its order, as from an index in memory."""
    ids = classed.ids(None, "train")
    plain = Reader(classed)
    mapped = reader_for(Manifest.load(classed.root), ids)
    sent = pickle.dumps(mapped)
    assert len(sent) < 3000
    assert ids[3].encode() not in sent, "no key is in it"
    rows = plain._index.rows(ids)
    for reader in (mapped, pickle.loads(sent)):
        assert len(reader) == len(ids)
        assert [reader.key(row) for row in range(len(ids))] == ids
        assert reader.shards().tolist() == plain._index.shard[rows].tolist()
        for row, there in enumerate(rows.tolist()):
            assert (reader.label(row), reader.meta(row)) == (plain.label(there), plain.meta(there))
            np.testing.assert_array_equal(reader.image(row), plain.image(there))
        assert not reader.has(0, "mask.png")
        reader.close()


@pytest.mark.usefixtures("large")
def test_where_nothing_can_be_kept_a_part_has_its_own_index(classed: Manifest, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("rwkvctl.base.files.atomic_open", lambda _: (_ for _ in ()).throw(OSError(28, "full")))
    ids = classed.ids(None, "val")
    reader = pickle.loads(pickle.dumps(reader_for(Manifest.load(classed.root), ids)))
    assert len(reader._index) == len(ids)
    assert [reader.key(row) for row in range(len(ids))] == ids


def test_npy_there_and_back():
    for array in (np.ones((3, 4), ">f4"), np.arange(24, dtype=np.uint8).reshape(2, 3, 4).transpose(1, 0, 2)):
        read = decode_npy(encode_npy(array))
        np.testing.assert_array_equal(read, array)
        assert read.flags.writeable


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        npy(np.array([[{"a": 1}]], dtype=object)),
        npy(np.ones((2, 2), np.complex64)),
        npy(np.ones(4)),
        encode_npy(np.ones((4, 4)))[:-1],
        encode_npy(np.ones((4, 4))).replace(b"(4, 4)", b"(9, 9)"),
        b"PK\x03\x04",
        b"",
    ],
)
def test_npy_that_is_not_read(data: bytes):
    with pytest.raises(ValueError, match="npy"):
        decode_npy(data)
