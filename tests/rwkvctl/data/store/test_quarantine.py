from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from rwkvctl.base.errors import UserError
from rwkvctl.cli.app import main
from rwkvctl.data.feed.loaders import TrainLoader
from rwkvctl.data.store import quarantine, verify
from rwkvctl.data.store.case_reader import reader_for
from rwkvctl.data.store.manifest import Manifest
from rwkvctl.data.store.shard_check import check_shards


@pytest.fixture
def copied(binary: Manifest, tmp_path: Path) -> Manifest:
    return Manifest.load(shutil.copytree(binary.root, tmp_path / "copy"))


def damage(manifest: Manifest, key: str, extension: str = "jpg") -> None:
    """Flip one bit in the middle of a member."""
    index = manifest.index
    row = int(index.rows([key])[0])
    offset, size, _ = map(int, index.members[extension][row])
    with (manifest.root / manifest.shards[index.shard[row]].name).open("r+b") as shard:
        byte = os.pread(shard.fileno(), 1, offset + size // 2)[0]
        os.pwrite(shard.fileno(), bytes([byte ^ 1]), offset + size // 2)


def keys_of_an_epoch(manifest: Manifest) -> list[str]:
    loader = TrainLoader(
        manifest, split=None, image_size=32, global_batch=2, rank=0, world_size=1, seed=1, workers=0, augment=None
    )
    return [key for batch in loader.epoch(0) for key in batch.keys]


@pytest.mark.parametrize("extension", ["jpg", "mask.png", "json"])
def test_a_damaged_sample_is_listed_and_left_out(copied: Manifest, extension: str):
    bad = copied.ids(None, "train")[2]
    damage(copied, bad, extension)
    (problem,) = verify.verify(copied.root).problems
    assert problem.endswith(f"the file is damaged: {bad}; --quarantine lists them and goes on without")
    report = verify.verify(copied.root, set_apart=True)
    assert (report.ok, list(report.quarantined)) == (True, [bad])
    assert f"/all-000000.tar: {bad}.{extension}: its bytes are not those that were written" in report.quarantined[bad]
    rest = Manifest.load(copied.root)
    assert rest.quarantined == 1
    assert rest.ids(None, "train") == [key for key in copied.ids(None, "train") if key != bad]
    assert rest.fingerprint not in (copied.fingerprint, "")
    assert rest.fingerprint == Manifest.load(copied.root).fingerprint
    check_shards(rest)
    reader = reader_for(rest, rest.ids(None, "train"))
    assert all(reader.image(row).any() for row in range(len(reader)))
    seen = keys_of_an_epoch(rest)
    assert len(seen) == 14  # of 15
    assert bad not in seen


def test_further_damage_is_not_covered(copied: Manifest):
    first, second = copied.ids(None, "train")[:2]
    damage(copied, first)
    verify.verify(copied.root, set_apart=True)
    damage(copied, second)
    with pytest.raises(UserError, match=r"all-000000\.tar: its SHA-256 is not"):
        check_shards(Manifest.load(copied.root))
    assert sorted(verify.verify(copied.root, set_apart=True).quarantined) == sorted([first, second])
    assert not verify.verify(copied.root).ok


def test_a_truncated_shard_loses_its_end_only(copied: Manifest):
    shard = copied.root / "all-000000.tar"
    os.truncate(shard, shard.stat().st_size * 2 // 3)
    assert "the manifest says" in verify.verify(copied.root).problems[0]
    lost = verify.verify(copied.root, set_apart=True).quarantined
    assert 3 < len(lost) < 10
    assert all(why.count("the shard is shorter than its index says") == 1 for why in lost.values())
    assert len(keys_of_an_epoch(Manifest.load(copied.root))) > 5


def test_a_sound_set_leaves_quarantine(copied: Manifest, binary: Manifest):
    damage(copied, copied.ids(None, "train")[0])
    verify.verify(copied.root, set_apart=True)
    shutil.copy(binary.root / "all-000000.tar", copied.root)
    report = verify.verify(copied.root, set_apart=True)
    assert (report.ok, report.quarantined) == (True, {})
    assert Manifest.load(copied.root).fingerprint == binary.fingerprint
    assert not (copied.root / quarantine.FILE_NAME).exists()


def test_what_cannot_be_set_apart(copied: Manifest):
    (copied.root / "all-000000.tar").unlink()
    report = verify.verify(copied.root, set_apart=True)
    assert "cannot be read (No such file or directory)" in report.problems[0]
    assert not (copied.root / quarantine.FILE_NAME).exists()
    with pytest.raises(UserError, match=r"--quarantine: is for a data set on a disk"):
        verify.verify("s3://bucket/set", set_apart=True)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("{", "cannot be read"),
        ('{"fingerprint": "x"}', "problems: fingerprint: string should match"),
        (json.dumps({"fingerprint": "0" * 64, "samples": {"a": "why"}, "shards": {}}), "is that of other data"),
    ],
)
def test_a_list_that_was_edited(copied: Manifest, content: str, match: str):
    (copied.root / quarantine.FILE_NAME).write_text(content)
    with pytest.raises(UserError, match=rf"quarantine\.json: .*{match}.*; run again: rwkvctl data verify --quarantine"):
        Manifest.load(copied.root)
    assert verify.verify(copied.root, set_apart=True).ok
    assert Manifest.load(copied.root).quarantined == 0


def test_on_the_command_line(copied: Manifest, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    bad = copied.ids(None, "train")[1]
    damage(copied, bad)

    def run(*words: str) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["rwkvctl", "data", *words, str(copied.root)])
        with pytest.raises(SystemExit) as end:
            main()
        return int(end.value.code or 0), capsys.readouterr().out

    assert run("verify")[0] == 1
    code, out = run("verify", "--quarantine")
    assert code == 0
    assert f"quarantined: {copied.root}/all-000000.tar: {bad}.jpg: its bytes are not those that were written" in out
    assert "sound, 1 sample in quarantine" in out
    assert "1 sample damaged and left out" in run("show")[1]
