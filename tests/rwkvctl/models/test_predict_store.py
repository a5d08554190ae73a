"""Inputs from an object store, and masks to one: fetched, named by their URIs, sent as they are ready."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rwkvctl.base.errors import UserError
from rwkvctl.base.object_store import filesystem
from rwkvctl.models.predict_sources import found
from rwkvctl.models.predict_store import is_uri, outbox_of

from ...store_door import Door
from ..data.images.dicom_series import write_ct

NUMBERS = itertools.count()


@pytest.fixture
def uri(door: Door, tmp_path: Path) -> str:
    """A folder with images, two series below it, and what is not meant."""
    place = tmp_path / "source"
    for name in ("10.png", "9.png", "deep/11.png"):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4)).save(place / name)
    for name in ("weights.safetensors", ".hidden.png"):
        (place / name).write_bytes(b"x" * 100)
    for number in (3, 4):
        write_ct(place / "dicom" / f"S{number}", np.zeros((4, 5, 3), int), number=number, description="")
    uri = f"s3://bucket/predict{next(NUMBERS)}/scans"
    filesystem(uri).put(str(place), uri, recursive=True)
    door.seen.clear()
    return uri


def names(sources: Any) -> list[str]:
    return [path.name for path in sources.paths]


def test_a_folder_has_its_images_and_nothing_else_is_fetched(uri: str, tmp_path: Path):
    sources = found([f"{uri}/"], tmp_path / "scratch")
    [folder] = sources.paths
    assert folder.name == "scans"
    assert sorted(path.name for path in folder.iterdir() if path.is_file()) == ["10.png", "9.png"]
    assert not list((tmp_path / "scratch").rglob("*.safetensors"))
    assert sources.say(f"input {folder / '9.png'}: is bad") == f"input {uri}/9.png: is bad"


def test_series_below_a_folder_are_volumes_with_the_uri_for_a_name(uri: str, tmp_path: Path):
    sources = found([f"{uri}/dicom"], tmp_path / "scratch")
    assert names(sources) == ["dicom_S3_3", "dicom_S4_4"]
    assert sources.say(str(sources.paths[0])).startswith(f"{uri}/dicom: series 3 (1.2.")


def test_one_object_and_a_pattern(uri: str, tmp_path: Path):
    sources = found([f"{uri}/9.png", f"{uri}/*.png"], tmp_path / "scratch")
    assert names(sources)[0] == "9.png"
    assert sorted(names(sources)[1:]) == ["10.png", "9.png"]
    assert sources.say(str(sources.paths[0])) == f"{uri}/9.png"
    assert sources.paths[0].read_bytes().startswith(b"\x89PNG")
    assert found([f"{uri}/9.png", f"{uri}/*.png"], tmp_path / "scratch") == sources, "fetched once"


def test_what_is_not_there_is_one_line(uri: str, tmp_path: Path, door: Door):
    for text, said in {
        f"{uri}/absent/": "no such object, and no folder with images, arrays or scans in it",
        f"{uri}/*.nii.gz": "no object has a name of this pattern",
        "https://example.org/x.png": "https:// is not supported; give a path, or a URI of s3:// or gs://",
        "s3://": "give a bucket and a folder in it, for example s3://bucket/scans/",
        "s3://bucket/../x": "give a bucket and a folder in it",
        "s3://me:secret@bucket/x": "must not contain a password or token",
        "s3://absent-bucket/x.png": "absent-bucket/x.png: ",
    }.items():
        with pytest.raises(UserError) as caught:
            found([text], tmp_path / "scratch")
        assert said in str(caught.value), text
        assert "secret" not in str(caught.value)
        assert "\n" not in str(caught.value)
    assert not is_uri("file:///x")


def test_masks_are_sent_when_they_are_whole_and_the_record_last(uri: str, tmp_path: Path, door: Door):
    out = f"{uri}-masks"
    outbox = outbox_of(out, tmp_path / "masks")
    outbox.check(["9.png"], overwrite=False, resume=False)
    for name in ("9.png", ".half.tmp", "run.json", "previews/9.png.png"):
        (tmp_path / "masks" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "masks" / name).write_text(name)
    outbox.send()
    store = filesystem(out)
    key = out.removeprefix("s3://")
    assert {name.removeprefix(f"{key}/") for name in store.find(out)} == {"9.png", "previews/9.png.png"}
    outbox.send(last=True)
    assert store.cat_file(f"{out}/run.json") == b"run.json"
    assert outbox.shown(tmp_path / "masks" / "9.png") == f"{out}/9.png"
    with pytest.raises(UserError, match=r"masks: 9.png exists; give another folder, or --overwrite to replace it$"):
        outbox.check(["9.png"], overwrite=False, resume=False)
    outbox.check(["9.png"], overwrite=True, resume=False)
    with pytest.raises(UserError, match="--resume goes on in a folder, not in a store"):
        outbox.check(["10.png"], overwrite=False, resume=True)


def test_a_folder_needs_no_store(tmp_path: Path):
    outbox = outbox_of(str(tmp_path), tmp_path / "scratch")
    outbox.check(["x"], overwrite=False, resume=True)
    outbox.send(last=True)
    assert (outbox.folder, outbox.shown(tmp_path / "x.png")) == (tmp_path, str(tmp_path / "x.png"))
