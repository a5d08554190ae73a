"""A manifest is parsed once in a process: as long as its bytes are the same, and for each caller one of their own."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from rwkvctl.base import files
from rwkvctl.base.errors import UserError
from rwkvctl.data.store import manifest as module
from rwkvctl.data.store.manifest import Manifest


@pytest.fixture
def root(binary: Manifest, tmp_path: Path) -> Path:
    return shutil.copytree(binary.root, tmp_path / "copy")


def test_it_is_parsed_once(root: Path, monkeypatch: pytest.MonkeyPatch):
    parsed, read = [], []
    validated, read_hashed = module.validated, Manifest._read_hashed
    monkeypatch.setattr(module, "validated", lambda *args: parsed.append(1) or validated(*args))
    monkeypatch.setattr(Manifest, "_read_hashed", lambda self, *args: read.append(args[0]) or read_hashed(self, *args))
    manifests = [Manifest.load(location) for location in (root, str(root), root / "manifest.json")]
    assert len({manifest.fingerprint for manifest in manifests}) == 1
    assert len({tuple(manifest.ids(None, "train")) for manifest in manifests}) == 1
    assert len(parsed) == 1
    assert len(read) == 1


def test_one_that_changed_is_read_anew(root: Path):
    """Also with the same size and time."""
    path = root / "manifest.json"
    first = Manifest.load(root)
    status = path.stat()
    raw = json.loads(path.read_text())
    raw["created_by"] = raw["created_by"][::-1]
    with path.open("r+b") as file:
        file.write((json.dumps(raw, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode())
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_size == status.st_size
    assert Manifest.load(root).content.created_by == first.content.created_by[::-1]
    raw["classes"][1] += "x"
    files.write_json(path, raw)
    for _ in range(2):
        with pytest.raises(UserError, match="was changed after it was written"):
            Manifest.load(root)


def test_a_split_that_changed_is_read_anew(root: Path):
    split = root / "splits" / f"{Manifest.load(root).default_split}.json"
    ids = Manifest.load(root).ids(None, "train")
    content = split.read_bytes()
    files.write_bytes(split, content.replace(ids[0].encode(), ids[0].swapcase().encode()))
    for _ in range(2):
        with pytest.raises(UserError, match="is not the file that the manifest describes"):
            Manifest.load(root).ids(None, "train")
    files.write_bytes(split, content)
    assert Manifest.load(root).ids(None, "train") == ids


def test_what_one_caller_changes_no_other_sees(root: Path):
    def state(manifest: Manifest) -> str:
        return manifest.content.model_dump_json() + str(manifest.split_ids(manifest.default_split))

    before = state(Manifest.load(root))
    mine = Manifest.load(root)
    mine.classes.append("more")
    mine.shards.clear()
    mine.splits.clear()
    mine.content.splits.clear()
    mine.content.stats["more"] = 1
    mine.content.source.expected["more"] = 1
    mine.content.duplicates.copies.append(["a", "b"])
    mine.content.excluded.clear()
    mine = Manifest.load(root)
    mine.ids(None, "train").clear()
    mine.split_ids(mine.default_split)["val"].append("more")
    assert state(mine) == before
    assert state(Manifest.load(root)) == before
