"""`data prepare --dry-run` says what `prepare` would make, and makes nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from rwkvctl.data.convert import synth
from rwkvctl.data.convert.prepare import prepare
from rwkvctl.data.convert.rehearsal import MOST_READ, rehearse

from ...cli.test_data import run

PATTERNS = ("--images", "foto/*", "--masks", "organ/*_*.png", "--classes", "background,heart,lung")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RWKVCTL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return synth.write("pairs:classes", tmp_path / "tree", n=8, size=32)


def test_it_shows_what_is_then_made(tree: Path, cache: Path, tmp_path: Path):
    before = sorted(tmp_path.rglob("*"))
    out = tmp_path / "organs"
    printed = run("prepare", "pairs", "--source", tree, "--out", out, *PATTERNS, "--dry-run")
    assert "pair         foto/case_1.jpg  with  organ/case_1_heart.png, organ/case_1_lung.png" in printed
    picture = cache / "dry-run" / "organs.png"
    assert f"picture      {picture}" in printed
    assert [path for path in tmp_path.rglob("*") if path not in before and not path.is_relative_to(cache)] == []
    with Image.open(picture) as sheet:
        assert sheet.size == (6 * 192, 2 * 192)
    made = run("prepare", "pairs", "--source", tree, "--out", out, *PATTERNS)
    same = [line for line in made.splitlines() if line.split()[0] in ("sizes", "pixels", "split", "warning")]
    assert len(same) == 7
    assert sorted(same) == sorted(line for line in printed.splitlines() if line in same)


def test_problems_are_shown_with_what_is_well(tree: Path, tmp_path: Path):
    for path in (tree / "organ").glob("case_2_*"):
        path.unlink()
    (tree / "foto" / "case_5.jpg").write_bytes(b"\xff\xd8\xff nothing")
    line = ("prepare", "pairs", "--source", tree, "--out", tmp_path / "set", *PATTERNS, "--dry-run")
    found = json.loads(run(*line, "--json", code=1))
    assert found["counts"] == {"all": 7}
    assert found["read"] == 6
    assert [Path(text.partition(": ")[0]).name for text in found["problems"]] == ["case_2.jpg", "case_5.jpg"]
    printed = run(*line, "--allow-partial")
    assert "left out     2: " in printed
    assert "  problem  " not in printed


@pytest.mark.parametrize(("name", "tiles"), [("acdc:h5", 12), ("imagefolder", 12), ("imagenet:timm", 0)])
def test_every_kind_of_data(name: str, tiles: int, tmp_path: Path):
    """Slices and volumes, images with a class, and shards that are taken over unread."""
    tree = synth.write(name, tmp_path / "tree", n=6, size=32)
    form = name.partition(":")[0]
    found = rehearse(form, [tree], "set", allow_partial=True)
    assert (found.problems, bool(found.sheet)) == ([], bool(tiles))
    made = prepare(form, [tree], tmp_path / "set", allow_partial=True)
    assert sum(found.counts.values()) == made.content.counts["samples"]
    assert found.read <= MOST_READ
    assert {key: own.counts for key, own in made.splits.items()} == found.splits
