from __future__ import annotations

import io
import itertools
import json
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rwkvctl.base import files
from rwkvctl.base.errors import UserError
from rwkvctl.data.convert import resplit
from rwkvctl.data.convert.prepare import prepare
from rwkvctl.data.images import files as image_files
from rwkvctl.data.images import looks
from rwkvctl.data.store import duplicates
from rwkvctl.data.store.leaks import leak_groups_of
from rwkvctl.data.store.manifest import Manifest
from rwkvctl.data.store.verify import verify


@pytest.fixture(scope="module")
def made(polyps: Path, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """20 polyps; 2 is a copy of 1, 4 is 3 with other JPEG quality, 5 is 3 smaller."""
    root = tmp_path_factory.mktemp("duplicates")
    source = Path(shutil.copytree(polyps, root / "source")) / "images"
    shutil.copy(source / "1.jpg", source / "2.jpg")
    Image.open(source / "3.jpg").save(source / "4.jpg", quality=50)
    Image.open(source / "3.jpg").resize((40, 40)).resize((48, 48)).save(source / "5.jpg")
    return prepare("folder", [source.parent], root / "set", seeds=[41])


@pytest.fixture
def copied(made: Manifest, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made.root, tmp_path / "copy"))


def test_copies_and_near_duplicates_are_in_the_manifest(made: Manifest):
    found = made.content.duplicates
    assert found.copies == [["set_0001", "set_0002"]]
    assert ["set_0003", "set_0004", "set_0005"] in found.near
    assert any("2 images in 1 clusters are copies" in warning for warning in made.content.warnings)


def test_duplicates_are_one_leak_group_everywhere(made: Manifest):
    groups = leak_groups_of(made)
    assert groups["set_0001"] == groups["set_0002"] != groups["set_0003"] == groups["set_0005"]
    ids = made.split_ids("random811_s41")
    shared = {groups[key] for key in ids["train"]} & {groups[key] for part in ("val", "test") for key in ids[part]}
    assert made.splits["random811_s41"].leak_groups_shared == len(shared)
    leaks = [warning for warning in verify(made.root).warnings if "are in train and held out" in warning]
    assert len(leaks) == bool(shared)


def test_groups_are_joined_by_duplicates():
    own = {"a": "p1", "b": "p1", "c": "p2", "d": "p2", "e": None, "f": "p3"}
    groups = duplicates.leak_groups(own, [["b", "c"], ["e", "f"]])
    assert groups == {"a": "p1", "b": "p1", "c": "p1", "d": "p1", "e": "p3", "f": "p3"}


def test_hashes_of_other_pictures_differ(polyps: Path):
    hashes = [hash_of(path.read_bytes()) for path in sorted((polyps / "images").iterdir())]
    assert all((a ^ b).bit_count() > duplicates.MOST_BITS for a, b in pairwise(hashes))
    buffer = io.BytesIO()
    Image.open(polyps / "images" / "1.jpg").save(buffer, "PNG")
    first = hash_of((polyps / "images" / "1.jpg").read_bytes())
    assert (first ^ hash_of(buffer.getvalue())).bit_count() <= duplicates.MOST_BITS


def hash_of(data: bytes) -> int:
    return int(looks.perceptual_hash(image_files.grey_copy(data)), 16)


def test_every_pair_of_near_hashes_is_a_candidate_and_no_other():
    """The search by parts of the hashes finds what comparing all pairs finds."""
    rng = np.random.default_rng(3)
    hashes = rng.integers(0, 1 << 63, 300, np.uint64)
    for number in range(100, 300):  # 0 to 6 bits from an earlier one
        flips = rng.choice(64, rng.integers(0, 7), replace=False)
        hashes[number] = hashes[rng.integers(0, 100)] ^ np.bitwise_or.reduce(
            np.uint64(1) << flips.astype(np.uint64), initial=np.uint64(0)
        )
    asked: set[tuple[str, str]] = set()

    def never(first: str, second: str) -> bool:
        pair = (min(first, second), max(first, second))
        assert pair not in asked
        asked.add(pair)
        return False

    named = {f"{number:03d}": f"{int(value):016x}" for number, value in enumerate(hashes)}
    assert duplicates.clusters_of_near(named, never) == []
    near = {
        (a, b)
        for a, b in itertools.combinations(named, 2)
        if (int(named[a], 16) ^ int(named[b], 16)).bit_count() <= duplicates.MOST_BITS
    }
    assert asked == near
    everything = duplicates.clusters_of_near(named, lambda a, b: True)
    assert sum(map(len, everything)) == len({key for pair in near for key in pair})


def test_near_duplicates_are_looked_for_among_many_images():
    """Beyond 50,000, of which nothing was looked for once; 3,000 of them have one hash."""
    rng = np.random.default_rng(1)
    hashes = rng.integers(0, 1 << 63, 60_000, np.uint64)
    hashes[1::20] = hashes[1]
    hashes[58_000] = hashes[4] ^ np.uint64(0b1011)
    named = {f"{number:05d}": f"{int(value):016x}" for number, value in enumerate(hashes)}
    found = duplicates.clusters_of_near(named, lambda a, b: True)
    assert ["00004", "58000"] in found
    assert max(map(len, found)) == 3_000


def test_photographs_of_classes_are_compared_too(textures: Path, tmp_path: Path):
    source = Path(shutil.copytree(textures, tmp_path / "raw"))
    first = sorted((source / "train" / "texture_00").iterdir())[0]
    Image.open(first).save(source / "val" / "texture_00" / "again.jpg", quality=60)
    made = prepare("imagefolder", [source], tmp_path / "set")
    assert [len(own) for own in made.content.duplicates.near or []] == [2]
    assert made.splits["official"].leak_groups_shared == 1


# Splits that are added later


def test_a_grouped_split_tears_no_cluster(copied: Path):
    before = Manifest.load(copied)
    assert resplit.add_split(copied, "grouped:8:1:1", seed=7) == ["grouped811_s7"]
    after = Manifest.load(copied)
    assert after.fingerprint == before.fingerprint  # runs on this data go on
    assert after.default_split == before.default_split
    entry = after.splits["grouped811_s7"]
    assert entry.leak_groups_shared == 0
    assert sum(entry.counts.values()) == 20
    assert after.ids("grouped811_s7", "train")
    report = verify(copied)
    assert report.problems == []
    assert "grouped811_s7" in report.splits


def test_random_and_folds(copied: Path):
    assert resplit.add_split(copied, "random:7:1:2", seed=3) == ["random712_s3"]
    names = resplit.add_split(copied, "grouped-kfold:5")
    assert names == [f"grouped_kfold5_s41_f{fold}" for fold in range(1, 6)]
    loaded = Manifest.load(copied)
    tests = [key for name in names for key in loaded.split_ids(name)["test"]]
    assert sorted(tests) == sorted(
        loaded.split_ids("random811_s41")["train"] + loaded.ids(None, "val") + loaded.ids(None, "test")
    )
    assert all(loaded.splits[name].leak_groups_shared == 0 for name in names)
    with pytest.raises(UserError, match="has the split random712_s3 already"):
        resplit.add_split(copied, "random:7:1:2", seed=3)


@pytest.mark.parametrize(
    "rule", ["", "random", "random:8", "kfold:2", "kfold:8:1", "grouped:0:1", "nearest:3", "kfold:99"]
)
def test_bad_rules(copied: Path, rule: str):
    with pytest.raises(UserError, match=r"--rule|--split|kfold"):
        resplit.add_split(copied, rule)
    assert list(Manifest.load(copied).splits) == ["random811_s41"]


def test_an_added_split_that_was_edited_is_found(copied: Path):
    resplit.add_split(copied, "random:7:1:2")
    path = copied / "splits" / "random712_s41.json"
    lists = json.loads(path.read_text())
    lists["test"], lists["train"] = lists["train"], lists["test"]
    files.write_json(path, lists)
    with pytest.raises(UserError, match=r"random712_s41.json: is not the file that the manifest describes"):
        Manifest.load(copied).ids("random712_s41", "train")
