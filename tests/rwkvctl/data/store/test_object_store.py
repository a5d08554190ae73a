from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import s3fs
import torch

from rwkvctl.base.errors import UserError
from rwkvctl.cli.app import main
from rwkvctl.data.convert.formats import imagefolder
from rwkvctl.data.convert.prepare import prepare
from rwkvctl.data.feed import loader_processes, order
from rwkvctl.data.feed.cases import iter_cases
from rwkvctl.data.feed.loaders import TrainLoader
from rwkvctl.data.feed.schedule import Schedule
from rwkvctl.data.store import bucket, shards, verify
from rwkvctl.data.store.manifest import Manifest
from rwkvctl.data.store.shard_check import check_shards
from rwkvctl.data.store.shards import ShardFiles, fetched_ahead
from rwkvctl.data.store.writer import Limits

from ....store_door import CUT, Door

NUMBERS = itertools.count()


@pytest.fixture
def uri(door: Door, binary: Manifest) -> str:
    """A fresh copy of a data set in the store; requests before it are forgotten."""
    uri = f"s3://bucket/set{next(NUMBERS)}"
    bucket.upload(binary.root, uri)
    door.seen.clear()
    return uri


@pytest.fixture(autouse=True)
def _workers_of_now(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fork server may be older than this environment."""
    monkeypatch.setattr(loader_processes, "process_context", lambda: multiprocessing.get_context("spawn"))


def loader(manifest: Manifest, workers: int = 0) -> TrainLoader:
    return TrainLoader(
        manifest, split=None, image_size=32, global_batch=4, rank=0, world_size=1, seed=1, workers=workers, augment=None
    )


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_batches_are_those_of_the_folder_and_a_shard_is_fetched_once(door, uri: str, binary: Manifest, workers: int):
    remote = Manifest.load(uri)
    assert (remote.fingerprint, remote.location) == (binary.fingerprint, uri)
    check_shards(remote)
    assert door.fetched(".tar") == 0
    crew = loader(remote, workers)
    for epoch in (0, 1):
        for here, there in zip(loader(binary).epoch(epoch), crew.epoch(epoch), strict=True):
            assert here.keys == there.keys
            assert torch.equal(here.images, there.images)
    crew.close()
    assert door.fetched(".tar") == 1
    assert [case.key for case in iter_cases(Manifest.load(uri), split=None, part="test")] == remote.ids(None, "test")
    assert (door.fetched(".tar"), door.fetched(".idx"), door.fetched("manifest.json")) == (1, 1, 2)


def test_verify_of_a_uri(uri: str):
    report = verify.verify(uri, deep=True)
    assert (report.ok, report.root, report.samples) == (True, uri, 20)


def test_file_uris_are_folders(binary: Manifest):
    assert Manifest.load(f"file://{binary.root}").root == binary.root


@pytest.mark.parametrize(
    ("location", "match"),
    [
        ("pipe:cat /etc/passwd", "data: pipe: is not supported"),
        ("pipe://x", "data: pipe: is not supported"),
        ("http://host/set", "data: http: is not supported; give a folder, or a URI of s3://"),
        ("simplecache::s3://bucket/set", "data: simplecache: is not supported"),
        ("file://host/set", "data: file: is not supported"),
        ("s3://bucket", "give a bucket and a folder in it, for example s3://bucket/acdc"),
        ("s3://bucket/a/../b", "give a bucket and a folder in it"),
        ("s3://AKIA:secret@bucket/set", r"data s3://\.\.\.: do not put credentials in the URI; set AWS_PROFILE"),
    ],
)
def test_other_uris_are_refused(location: str, match: str):
    with pytest.raises(UserError, match=match) as caught:
        Manifest.load(location)
    assert "secret" not in str(caught.value)


def test_what_is_not_there(door, uri: str):
    with pytest.raises(UserError, match=r"s3://bucket/none/manifest\.json: not found \(404\)"):
        Manifest.load("s3://bucket/none")
    store = s3fs.S3FileSystem()
    store.rm_file(f"{uri}/all-000000.tar")
    with pytest.raises(UserError, match=rf"{uri}/all-000000\.tar: is not there, the manifest says"):
        check_shards(Manifest.load(uri))
    with pytest.raises(UserError, match=rf"{uri}/all-000000\.tar: not found \(404\)"):
        next(loader(Manifest.load(uri)).epoch(0))


def test_a_damaged_object_is_refused_and_not_kept(uri: str, binary: Manifest):
    content = bytearray((binary.root / "all-000000.tar").read_bytes())
    content[5000] ^= 1
    s3fs.S3FileSystem().pipe_file(f"{uri}/all-000000.tar", bytes(content))
    line = rf"{uri}/all-000000\.tar: is not the shard that the manifest describes \(SHA-256 differs\); upload it again"
    for _ in range(2):
        with pytest.raises(UserError, match=line):
            next(loader(Manifest.load(uri)).epoch(0))
    assert any("is not the shard" in problem for problem in verify.verify(uri).problems)
    assert not list(shards.cache_root().rglob("*.tar"))


@pytest.mark.parametrize("answer", [500, 503])
def test_server_errors_are_tried_again(door, uri: str, answer: int):
    door.answers += [answer, answer]
    assert Manifest.load(uri).ids(None, "train")
    assert not door.answers
    door.seen.clear()
    door.answers += [answer]
    next(loader(Manifest.load(uri)).epoch(0))
    assert not door.answers


def test_a_cut_connection_is_resumed(door: Door, uri: str):
    remote = Manifest.load(uri)
    assert len(remote.index)
    door.answers += [CUT]
    remote.shard_files.path(0)
    assert not door.answers
    assert door.fetched(".tar") == 2


def test_403_fails_at_once_without_the_key(door, uri: str):
    door.answers += [403]
    with pytest.raises(UserError, match=r"manifest\.json: access denied \(403\); check the credentials") as caught:
        Manifest.load(uri)
    assert len(door.seen) == 1
    assert "AKIA" not in str(caught.value)
    remote = Manifest.load(uri)
    reader = loader(remote)
    door.seen.clear()
    door.answers += [403] * 9
    with pytest.raises(UserError, match=r"all-000000\.tar: access denied \(403\)"):
        next(reader.epoch(0))
    door.answers.clear()
    assert door.fetched(".tar") <= 3  # by the reader, and ahead for this epoch and for the next


def test_many_readers_fetch_a_shard_once(door, uri: str):
    remote = Manifest.load(uri)
    with ThreadPoolExecutor(8) as pool:
        descriptors = list(pool.map(lambda _: Manifest.load(uri).shard_files.open(0), range(8)))
    assert door.fetched(".tar") == 1
    assert {os.fstat(descriptor).st_size for descriptor in descriptors} == {remote.shards[0].bytes}
    for descriptor in descriptors:
        os.close(descriptor)


def test_the_longest_unused_shards_make_room(tmp_path: Path):
    for age, name in enumerate(("new", "old", "older")):
        path = tmp_path / name / "all-000000.tar"
        path.parent.mkdir(parents=True)
        path.write_bytes(b"x" * 1000)
        os.utime(path, (time.time() - 60 * age, 0))
    left = lambda: sorted(path.parent.name for path in tmp_path.glob("*/*.tar"))  # noqa: E731
    shards.make_room(tmp_path, 0, 3000)
    assert left() == ["new", "old", "older"]
    shards.make_room(tmp_path, 1001, 3000)
    assert left() == ["new"]


def test_a_shard_that_made_room_is_fetched_again(door, uri: str):
    files = Manifest.load(uri).shard_files
    first = files.open(0)
    files.path(0).unlink()
    again = files.open(0)
    assert os.pread(first, 10, 0) == os.pread(again, 10, 0)
    assert door.fetched(".tar") == 2
    os.close(first), os.close(again)


def test_a_cache_that_is_too_small(uri: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RWKVCTL_CACHE_GB", "0.00001")
    with pytest.raises(UserError, match=rf"{uri}: needs a cache of .* rwkvctl config set cache_gb 1$"):
        loader(Manifest.load(uri))


@pytest.mark.slow
def test_training_through_a_cache_for_two_groups(
    door: Door, textures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Fifteen shards, of which eight fit: they come and go, and the batches are those of the folder."""
    monkeypatch.setattr(imagefolder, "LIMITS", Limits(samples=2))
    local = prepare("imagefolder", [textures], tmp_path / "many")
    uri = f"s3://bucket/set{next(NUMBERS)}"
    bucket.upload(local.root, uri)
    largest = sorted(shard.bytes for shard in local.shards)[-8:]
    monkeypatch.setenv("RWKVCTL_CACHE_GB", str(sum(largest) / 1e9))
    door.seen.clear()
    here, there = loader(local), loader(Manifest.load(uri), workers=1)
    for epoch in (0, 1):
        for expected, found in zip(here.epoch(epoch), there.epoch(epoch), strict=True):
            assert found.keys == expected.keys
            assert torch.equal(found.images, expected.images)
    there.close()
    assert 15 <= door.fetched(".tar") <= 60
    kept = [path.stat().st_size for path in shards.cache_root().rglob("*.tar")]
    assert sum(kept) <= sum(largest) + shards.AT_ONCE * largest[-1]  # those on their way


def test_a_cache_that_cannot_be_written(uri: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("RWKVCTL_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"all-000000\.tar: cannot be kept in .* rwkvctl config set cache_dir FOLDER"):
        next(loader(Manifest.load(uri)).epoch(0))


def test_the_next_group_of_shards_is_fetched_while_one_is_read():
    shard_of = torch.arange(12).repeat_interleave(2).numpy().astype("int32")
    schedule = Schedule(shard_of, seed=3, global_batch=4, rank=0, world_size=1)
    groups = schedule.shard_groups(0)
    assert [start for start, _ in groups] == [0, 8, 16, 24]
    sequence = order.epoch_order(shard_of, 3, 0)
    for (start, numbers), (end, _) in itertools.pairwise(groups):
        assert set(shard_of[sequence[start:end]]) == set(numbers)
    asked = list[int]()

    class Recorded(ShardFiles):
        def path(self, number: int) -> Path:
            asked.append(number)
            return Path()

    def asked_after(batches: int, begin: int) -> set[int]:
        asked.clear()
        ahead = fetched_ahead(iter(range(6)), 4, begin, groups, Recorded(Path(), []))
        for _ in range(batches):
            next(ahead)
        time.sleep(0.1)
        ahead.close()  # type: ignore[attr-defined]
        return set(asked)

    def of(*numbers: int) -> set[int]:
        return set().union(*(groups[number][1] for number in numbers))

    assert asked_after(1, begin=0) == asked_after(2, begin=0) == of(0, 1)
    assert asked_after(3, begin=0) == of(0, 1, 2)
    assert asked_after(1, begin=12) == of(1, 2)
    assert asked_after(1, begin=16) == of(2, 3)


def test_upload_is_whole_and_overwrites_only_when_told(door, uri: str, classed: Manifest, tmp_path: Path):
    with pytest.raises(UserError, match=rf"--out {uri}: exists; give another --out or --overwrite"):
        bucket.upload(classed.root, uri)
    bucket.upload(classed.root, uri, overwrite=True)
    assert [line for line in door.seen if line.startswith("PUT")][-1].endswith("manifest.json")
    assert set(bucket.sizes(uri)) == {
        path.relative_to(classed.root).as_posix() for path in classed.root.rglob("*") if path.is_file()
    }
    s3fs.S3FileSystem().pipe_file("s3://bucket/mine/photo.jpg", b"x")
    with pytest.raises(UserError, match="exists but is not a prepared data set"):
        bucket.upload(classed.root, "s3://bucket/mine", overwrite=True)


def test_preparing_into_a_store(door, binary: Manifest, tmp_path: Path):
    uri = f"s3://bucket/set{next(NUMBERS)}/polyps"
    with bucket.prepared(uri, tmp_path, overwrite=False) as folder:
        assert folder.name == "polyps"
        shutil.copytree(binary.root, folder)
    assert Manifest.load(uri).fingerprint == binary.fingerprint
    assert not list((tmp_path / "prepare").iterdir())
    with pytest.raises(UserError, match="exists"), bucket.prepared(uri, tmp_path, overwrite=False):
        pass


def test_on_the_command_line(
    door: Door, polyps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def run(*words: object) -> str:
        monkeypatch.setattr("sys.argv", ["rwkvctl", "data", *map(str, words)])
        with contextlib.suppress(SystemExit):
            main()
        said = capsys.readouterr()
        return said.out + said.err

    uri = f"s3://bucket/set{next(NUMBERS)}/polyps"
    prepare = ("prepare", "folder", "--source", polyps, "--out", uri, "--seed", 41)
    assert run(*prepare).startswith(f"{uri}\n  data set     polyps, segmentation")
    assert run("verify", uri) == f"{uri}: sound (20 samples in 1 shards)\n"
    assert run(*prepare) == f"error: --out {uri}: exists; give another --out or --overwrite\n"
    assert run("verify", "--quarantine", uri).startswith("error: --quarantine: is for a data set on a disk; upload")
    assert run("split", uri, "--rule", "random:8:1:1").startswith(f"error: {uri}: splits are added on a disk")
    assert run("show", "s3://bucket/none") == (
        "error: s3://bucket/none/manifest.json: not found (404); check the name and the bucket\n"
    )
