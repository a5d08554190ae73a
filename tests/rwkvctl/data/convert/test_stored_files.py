"""Raw files in an object store: the same data set as from a folder, by the line that doctor prints."""

from __future__ import annotations

import itertools
import shlex
import shutil
from pathlib import Path

import pytest
import s3fs

from rwkvctl.base.errors import UserError
from rwkvctl.data.convert import synth
from rwkvctl.data.convert.sources import open_sources
from rwkvctl.data.store.manifest import Manifest

from ....store_door import Door
from ...cli.test_data import run

NUMBERS = itertools.count()


def uploaded(path: Path, name: str = "") -> str:
    """`path`, a file or a folder, in the store."""
    uri = f"s3://bucket/raw{next(NUMBERS)}"
    store = s3fs.S3FileSystem()
    for file in path.rglob("*") if path.is_dir() else [path]:
        if file.is_file():
            inner = file.relative_to(path).as_posix() if path.is_dir() else file.name
            store.put_file(str(file), f"{uri}/{inner}")
    return f"{uri}/{name}".rstrip("/")


def made(source: str, out: Path, code: int = 0) -> Manifest:
    """By the line that doctor prints."""
    words = shlex.split(run("doctor", source, code=code).partition("  prepare  ")[2])
    run(*words[2:], "--out", out)
    return Manifest.load(out)


@pytest.mark.parametrize("form", ["junk", "palette", "csv", "languages"])
def test_the_same_as_from_a_folder(form: str, tmp_path: Path, door: Door):
    tree = synth.write(f"pairs:{form}", tmp_path / "tree", n=6, size=48)
    local = made(str(tree), tmp_path / "a" / "set")
    uri = uploaded(tree)
    stored = made(uri, tmp_path / "b" / "set")
    assert stored.content.samples_sha256 == local.content.samples_sha256
    assert (stored.classes, stored.content.counts) == (local.classes, local.content.counts)
    assert {name: own.counts for name, own in stored.splits.items()} == {n: o.counts for n, o in local.splits.items()}


@pytest.mark.parametrize("kind", ["zip", "gztar"])
@pytest.mark.parametrize("where", ["here", "store", "folder of the store"])
def test_archives(kind: str, where: str, tmp_path: Path, door: Door):
    tree = synth.write("pairs:grey", tmp_path / "tree", n=6, size=48)
    local = made(str(tree), tmp_path / "a" / "set")
    archive = Path(shutil.make_archive(str(tmp_path / "raw"), kind, tree))
    source = str(archive) if where == "here" else uploaded(archive, archive.name if where == "store" else "")
    stored = made(source, tmp_path / "b" / "set")
    assert stored.content.samples_sha256 == local.content.samples_sha256


def test_doctor_reads_few_objects(tmp_path: Path, door: Door):
    uri = uploaded(synth.write("pairs:suffix", tmp_path / "tree", n=60, size=32))
    door.seen.clear()
    run("doctor", uri)
    assert sum(line.startswith("GET") and "_maske.gif" in line for line in door.seen) <= 80, "a few times 24"


def test_what_is_not_there(tmp_path: Path, door: Door):
    (tmp_path / "a.png").write_bytes(b"x")
    uri = uploaded(tmp_path / "a.png")
    for source, said in {
        "s3://bucket/nothing": r"--source s3://bucket/nothing: no object has a name that begins so",
        f"{uri}/a.png": r"is an object and no archive \(.zip, .tar, .tar.gz, .tgz\); give the folder it is in",
        "s3://me:secret@bucket/x": r"--source s3://me:\*\*\*@bucket/x: must not contain a password",
        "ftp://host/x": "ftp: is not supported",
    }.items():
        with pytest.raises(UserError, match=said) as caught, open_sources([source]):
            pass
        assert "secret" not in str(caught.value)


def test_an_object_that_vanishes_is_one_line(tmp_path: Path, door: Door):
    uri = uploaded(synth.write("pairs:suffix", tmp_path / "tree", n=6, size=32))
    door.rule = lambda line: 404 if line.startswith("GET") and "_maske" in line else None
    patterns = ("--images", "Bilder/*", "--masks", "Masken/*_*")
    with pytest.raises(UserError, match=r"s3://bucket/.*_maske.gif: not found \(404\)"):
        run("prepare", "pairs", "--source", uri, *patterns, "--out", tmp_path / "s")
    assert not (tmp_path / "s").exists()
