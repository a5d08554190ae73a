"""Samples that are decoded once a machine: the same batches, whatever becomes of the file that they are kept in."""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
import signal
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from rwkvctl.config.specs.augment import SegmentationAugment
from rwkvctl.data.convert.prepare import prepare
from rwkvctl.data.feed import decoded
from rwkvctl.data.feed.loaders import TrainLoader
from rwkvctl.data.feed.samples import Batch
from rwkvctl.data.store.manifest import Manifest


def loader(manifest: Manifest, size: int | tuple[int, int] = 32, **changes: Any) -> TrainLoader:
    options = {"rank": 0, "world_size": 1, "workers": 0, "augment": SegmentationAugment(), "tail": "wrap"}
    return TrainLoader(manifest, split=None, image_size=size, global_batch=4, seed=41, **options | changes)


def same(found: list[Batch], wanted: list[Batch]) -> bool:
    return [batch.keys for batch in found] == [batch.keys for batch in wanted] and all(
        torch.equal(one.images, other.images) and torch.equal(one.targets, other.targets)
        for one, other in zip(found, wanted, strict=True)
    )


def files_in(home: Path) -> list[Path]:
    return sorted(home.glob("cache/decoded/*.samples"))


def refuse(*args: Any) -> Any:
    raise AssertionError("a sample was decoded again")


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("augment", [None, SegmentationAugment(), SegmentationAugment(preset="nnunet")])
@pytest.mark.parametrize(("name", "size"), [("binary", 32), ("binary", (20, 64)), ("cardiac", 32), ("cardiac", 40)])
def test_batches_are_those_from_the_shards(
    name: str, size: Any, augment: Any, workers: int, request: Any, home: Path, monkeypatch: pytest.MonkeyPatch
):
    """Also those of a run that goes on in the midst of an epoch; nothing is decoded a second time."""
    manifest = request.getfixturevalue(name)
    plain = loader(manifest, size, augment=augment)
    places = [(0, 0), (1, 8), (0, 4)]
    wanted = [list(plain.epoch(*place)) for place in places]
    first = loader(manifest, size, augment=augment)
    assert "training samples are kept decoded" in first.keep_decoded()
    monkeypatch.setattr("rwkvctl.data.feed.samples.stored_pair", refuse)
    again = loader(manifest, size, augment=augment, workers=workers)
    assert again.keep_decoded() == ""
    for kept in (first, again):
        assert all(same(list(kept.epoch(*place)), batches) for place, batches in zip(places, wanted, strict=True))
        kept.close()
    assert len(files_in(home)) == 1


def test_a_large_jpeg_is_kept_as_training_decodes_it(tmp_path: Path, home: Path):
    """At a fraction of its size, which evaluation does not do."""
    for number in range(10):
        for folder in ("images", "masks"):
            (tmp_path / "raw" / folder).mkdir(parents=True, exist_ok=True)
        Image.effect_noise((200, 150), 80 + number).convert("RGB").save(tmp_path / f"raw/images/{number}.jpg")
        Image.new("L", (200, 150), 0).save(tmp_path / f"raw/masks/{number}.png")
    manifest = prepare("folder", [tmp_path / "raw"], tmp_path / "shards", seeds=[41])
    wanted = list(loader(manifest).epoch(0))
    kept = loader(manifest)
    assert kept.keep_decoded()
    assert same(list(kept.epoch(0)), wanted)


def test_what_pixels_depend_on_has_files_of_its_own(binary: Manifest, cardiac: Manifest, home: Path):
    for manifest, size in ((binary, 32), (binary, 40), (cardiac, 32), (binary, 32)):
        loader(manifest, size).keep_decoded()
    assert len(files_in(home)) == 3
    one = Manifest.load(binary.root)
    assert decoded.key_of(one, ["a"], LAYOUT) != decoded.key_of(one, ["b"], LAYOUT)


LAYOUT = decoded.Layout((32, 32, 3), "u1", (32, 32))


def damage_a_sample(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(1000)
        byte = file.read(1)
        file.seek(1000)
        file.write(bytes([byte[0] ^ 1]))


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("harm", [damage_a_sample, cut, Path.unlink], ids=["flipped bit", "cut", "gone"])
def test_what_cannot_be_read_is_decoded(harm: Callable[[Path], None], binary: Manifest, home: Path):
    """By a training that has begun, and by the next one."""
    wanted = list(loader(binary).epoch(0))
    kept = loader(binary)
    kept.keep_decoded()
    [path] = files_in(home)
    harm(path)
    assert same(list(kept.epoch(0)), wanted)
    again = loader(binary)
    again.keep_decoded()
    assert same(list(again.epoch(0)), wanted)


def test_nothing_is_kept_of_more_than_the_bound(binary: Manifest, home: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RWKVCTL_DECODED_GB", "0.00001")
    assert loader(binary).keep_decoded() == (
        "training samples are decoded in every epoch: they are 0.0 GB, and decoded_gb is 1e-05"
    )
    monkeypatch.setenv("RWKVCTL_DECODED_GB", "0")
    assert loader(binary).keep_decoded() == ""
    assert not files_in(home)


def test_the_longest_unused_make_room(binary: Manifest, home: Path, monkeypatch: pytest.MonkeyPatch):
    """Room for two of three; who has one open reads on."""
    total = LAYOUT.sample_bytes * len(binary.ids(None, "train"))
    monkeypatch.setenv("RWKVCTL_DECODED_GB", str(2.5 * total / 1e9))
    wanted = list(loader(binary, 31).epoch(0))
    first = loader(binary, 31)
    first.keep_decoded()
    [path] = files_in(home)
    next(first.epoch(0))
    for size in (30, 32):
        loader(binary, size).keep_decoded()
    assert len(files_in(home)) == 2
    assert path not in files_in(home)
    assert same(list(first.epoch(0)), wanted)


@pytest.mark.parametrize("full", ["before", "in the midst"])
def test_a_full_disk(full: str, binary: Manifest, home: Path, monkeypatch: pytest.MonkeyPatch):
    if full == "before":
        usage = namedtuple("usage", "total used free")(1, 1, 5 << 30)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    else:

        def no_space(descriptor: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(decoded.os, "fsync", no_space)
    said = loader(binary).keep_decoded()
    assert said.startswith("training samples are decoded in every epoch: ")
    assert said.endswith("; free some space")
    assert not [path for path in home.glob("cache/decoded/*") if not path.name.endswith("lock")]
    assert "part" not in " ".join(path.name for path in home.glob("cache/decoded/.*"))


def test_a_sample_that_cannot_be_decoded_is_told_when_training_comes_to_it(
    binary: Manifest, home: Path, tmp_path: Path
):
    root = shutil.copytree(binary.root, tmp_path / "copy")
    manifest = Manifest.load(root)
    _, size, _ = manifest.index.members["mask.png"][0]
    shard = root / manifest.shards[0].name
    shard.chmod(0o644)
    data = bytearray(shard.read_bytes())
    at = int(manifest.index.members["mask.png"][int(manifest.rows(manifest.ids(None, "train"))[0])][0])
    data[at + int(size) // 2] ^= 1
    shard.write_bytes(data)
    kept = loader(manifest)
    assert kept.keep_decoded() == ""
    assert not files_in(home)
    with pytest.raises(ValueError, match=r"CRC differs"):
        list(kept.epoch(0))


# Several processes ---------------------------------------------------------------------------------------------------


def keep_in(home: str, root: str, answers: Any, die: bool = False) -> None:
    """Keep the samples; `die` by SIGKILL while they are written."""
    os.environ["RWKVCTL_HOME"] = home

    def progress() -> None:
        if die:
            os.kill(os.getpid(), signal.SIGKILL)

    said = loader(Manifest.load(root)).keep_decoded(progress)
    answers.put(said)


def test_of_several_at_once_one_decodes(binary: Manifest, home: Path):
    context = multiprocessing.get_context("forkserver")
    answers = context.Queue()
    crew = [context.Process(target=keep_in, args=(str(home), str(binary.root), answers)) for _ in range(4)]
    for process in crew:
        process.start()
    said = sorted(answers.get() for _ in crew)
    for process in crew:
        process.join()
    assert said[:3] == ["", "", ""]
    assert "are kept decoded" in said[3]


def test_kill_9_while_they_are_written(binary: Manifest, home: Path):
    """The next training decodes them all, of this size or another, and nothing is left of the first."""
    context = multiprocessing.get_context("forkserver")
    killed = context.Process(target=keep_in, args=(str(home), str(binary.root), None, True))
    killed.start()
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    assert not files_in(home)
    assert len(list(home.glob("cache/decoded/.*.part"))) == 1
    assert "are kept decoded" in loader(binary, 40).keep_decoded()
    assert not list(home.glob("cache/decoded/.*.part"))
    wanted = list(loader(binary).epoch(0))
    kept = loader(binary)
    assert "are kept decoded" in kept.keep_decoded()
    assert same(list(kept.epoch(0)), wanted)
