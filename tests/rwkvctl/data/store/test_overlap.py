"""Samples that were trained on are found among those that are scored, under other names and in other data sets too."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from rwkvctl.data.convert.prepare import prepare
from rwkvctl.data.convert.synth import phantom
from rwkvctl.data.store.manifest import Manifest
from rwkvctl.data.store.overlap import trained_on


def test_in_one_data_set_parts_share_nothing_but_what_is_named_twice(binary: Manifest) -> None:
    train, test = binary.ids(None, "train"), binary.ids(None, "test")
    assert trained_on(binary, train, binary, test) == []
    assert trained_on(binary, [*train, test[1]], binary, test) == [test[1]]


def test_under_other_names_and_another_split_in_another_data_set(
    polyps: Path, binary: Manifest, tmp_path: Path
) -> None:
    for path in sorted(path for path in polyps.rglob("*") if path.is_file()):
        target = tmp_path / "raw" / path.parent.relative_to(polyps) / f"patient_{path.name}"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    other = prepare("folder", [tmp_path / "raw"], tmp_path / "other", seeds=[7])
    train, test = binary.ids(None, "train"), other.ids(None, "train")
    numbers = {int(re.findall(r"\d+", key)[-1]) for key in train}
    expected = [key for key in test if int(re.findall(r"\d+", key)[-1]) in numbers]
    assert 0 < len(expected) < len(test), (train, test)
    assert not set(train) & set(test)
    assert trained_on(binary, train, other, test) == expected


def test_volumes_and_foreign_data(cardiac: Manifest, binary: Manifest, tmp_path: Path) -> None:
    train = cardiac.ids(None, "train")
    assert trained_on(cardiac, train, cardiac, train) == train
    assert trained_on(cardiac, train, cardiac, cardiac.ids(None, "test")) == []
    phantom.write_polyps(tmp_path / "raw", n=20, size=48, seed=99)
    other = prepare("folder", [tmp_path / "raw"], tmp_path / "binary", seeds=[41])
    train = binary.ids(None, "train")
    assert other.ids(None, "train") == train
    assert trained_on(binary, train, other, train) == []  # equal ids of other data say nothing
