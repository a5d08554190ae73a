from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from rwkvctl.base import files
from rwkvctl.base.errors import UserError
from rwkvctl.data.store import schema, verify
from rwkvctl.data.store.manifest import Manifest
from rwkvctl.data.store.shard_check import check_shards


@pytest.fixture
def copied(cardiac: Manifest, tmp_path: Path) -> Manifest:
    return Manifest.load(shutil.copytree(cardiac.root, tmp_path / "copy"))


def flip_byte(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def rewrite(root: Path, change) -> None:
    """Change the manifest and give it a fitting fingerprint, as a careful forger or a bug would."""
    path = root / schema.FILE_NAME
    content = json.loads(path.read_text())
    change(content)
    content["fingerprint"] = schema.fingerprint(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("name", ["binary", "cardiac", "classed"])
@pytest.mark.parametrize("deep", [False, True])
def test_sound_sets(name, deep, request):
    made = request.getfixturevalue(name)
    report = verify.verify(made.root, deep=deep)
    assert report.problems == []
    assert report.samples == len(made.index)
    assert report.splits[made.default_split] == made.splits[made.default_split].counts
    assert ("val and test are the same" in " ".join(report.warnings)) == (name == "classed")
    check_shards(made)


def test_a_flipped_byte_is_found(copied: Manifest):
    ids = {part: copied.ids(None, part) for part in ("train", "val", "test")}
    flip_byte(copied.root / "val-000000.tar", 5000)
    check_shards(copied, ids["train"] + ids["test"])
    with pytest.raises(UserError, match=r"val-000000\.tar: its SHA-256 is not that of the manifest"):
        check_shards(copied, ids["val"])
    with pytest.raises(UserError, match=r"val-000000\.tar"):
        check_shards(copied)
    report = verify.verify(copied.root)
    assert len(report.problems) == 1
    assert "val-000000.tar" in report.problems[0]


def test_a_good_shard_is_hashed_once(copied: Manifest, monkeypatch: pytest.MonkeyPatch):
    hashed = []
    real = files.sha256_file
    monkeypatch.setattr(verify.files, "sha256_file", lambda path: hashed.append(path) or real(path))
    check_shards(copied)
    assert len(hashed) == 3
    check_shards(copied)
    assert len(hashed) == 3
    shard = copied.root / "val-000000.tar"
    flip_byte(shard, 5000)
    os.utime(shard, ns=(1, 1))
    with pytest.raises(UserError, match="val-000000"):
        check_shards(copied)
    verify.verify(copied.root)
    assert len(hashed) == 3 + 1 + 3  # verify trusts no earlier run


def test_missing_and_short_shards(copied: Manifest):
    shard = copied.root / "train-000000.tar"
    os.truncate(shard, 1000)
    with pytest.raises(UserError, match="has 1000 bytes, the manifest says"):
        check_shards(copied)
    shard.unlink()
    with pytest.raises(UserError, match="cannot be read"):
        check_shards(copied)
    assert not verify.verify(copied.root).ok


def test_check_works_without_a_cache(copied: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "cache").write_text("")  # where a folder is to be
    monkeypatch.setenv("RWKVCTL_HOME", str(tmp_path / "own"))
    check_shards(copied)


def test_an_edited_manifest_is_a_problem_and_no_data_set_is_a_mistake(copied: Manifest, tmp_path: Path):
    path = copied.root / schema.FILE_NAME
    path.write_text(path.read_text().replace("myocardium", "muscle"))
    assert "was changed" in verify.verify(copied.root).problems[0]
    with pytest.raises(UserError, match="no prepared data set"):
        verify.verify(tmp_path / "nowhere")


def test_a_split_that_leaks_samples(copied: Manifest):
    name = copied.default_split
    path = copied.root / "splits" / f"{name}.json"
    lists = json.loads(path.read_text())
    lists["val"].append(lists["train"][0])
    lists["test"].append("acdc_p999")
    path.write_text(json.dumps(lists))

    def change(content):
        content["splits"][name]["sha256"] = files.sha256_file(path)

    rewrite(copied.root, change)
    problems = " ".join(verify.verify(copied.root).problems)
    assert "1 samples are in train and held out" in problems
    assert "1 ids are in no shard, first acdc_p999" in problems
    assert "the manifest says" in problems


def test_label_out_of_range(copied: Manifest):
    rewrite(copied.root, lambda content: content.update(classes=["background", "right ventricle", "myocardium"]))
    report = verify.verify(copied.root)
    assert "mask value 3, there are 3 classes" in report.problems[0]


def test_shared_groups_are_reported(polyps: Path, tmp_path: Path):
    from rwkvctl.data.convert.prepare import prepare

    source = Path(shutil.copytree(polyps, tmp_path / "raw"))
    for n in range(2, 21):
        shutil.copy(source / "images" / "1.jpg", source / "images" / f"{n}.jpg")
    made = prepare("folder", [source], tmp_path / "set", seeds=[41])
    assert made.splits["random811_s41"].leak_groups_shared == 1
    assert "2 of 2 test samples are of groups" in verify.verify(made.root).warnings[0]
