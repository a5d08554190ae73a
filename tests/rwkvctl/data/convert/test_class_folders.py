"""Classes as folders of images, without parts."""

from __future__ import annotations

import shutil
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rwkvctl.base.errors import UserError
from rwkvctl.data.convert import resplit
from rwkvctl.data.convert.formats import imagefolder
from rwkvctl.data.convert.prepare import prepare
from rwkvctl.data.convert.sources import open_sources
from rwkvctl.data.guess.doctor import examine
from rwkvctl.data.store.case_reader import reader_for
from rwkvctl.data.store.manifest import Manifest


def write(folder: Path, classes: dict[str, int], names: str = "{n}.png") -> Path:
    rng = np.random.default_rng(0)
    for name, count in classes.items():
        (folder / name).mkdir(parents=True)
        for n in range(count):
            Image.fromarray(rng.integers(0, 256, (32, 40, 3), np.uint8)).save(folder / name / names.format(n=n))
    return folder


def labels_of(manifest: Manifest, ids: list[str]) -> list[str]:
    reader = reader_for(manifest, ids)
    return [manifest.classes[reader.label(row)] for row in range(len(reader))]


@pytest.mark.parametrize("inside", ["", "download/train"])
def test_parts_are_drawn_within_each_class(tmp_path: Path, inside: str):
    write(tmp_path / "raw" / inside, {"benign": 30, "malign": 10, "Ödem": 2})
    manifest = prepare("imagefolder", [tmp_path / "raw"], tmp_path / "set", ratio="6:2:2", seeds=[7, 8])
    assert (manifest.task, manifest.classes) == ("classification", ["benign", "malign", "Ödem"])
    assert manifest.content.source.form == "classes"
    assert list(manifest.splits) == ["stratified622_s7", "stratified622_s8"]
    found = manifest.split_ids("stratified622_s7")
    counts = {part: [labels_of(manifest, ids).count(name) for name in manifest.classes] for part, ids in found.items()}
    assert counts == {"train": [18, 6, 2], "val": [6, 2, 0], "test": [6, 2, 0]}
    assert len(set(chain(*found.values()))) == 42
    assert found != manifest.split_ids("stratified622_s8")
    names = resplit.add_folds(manifest.root, 3)
    again = Manifest.load(manifest.root)
    held_out = [labels_of(again, again.ids(name, "val")) for name in names]
    assert [sorted(own.count(name) for own in held_out) for name in manifest.classes] == [
        [8, 8, 8],
        [2, 3, 3],
        [0, 1, 1],
    ]


def test_images_of_one_patient_stay_together(tmp_path: Path):
    for name in ("a", "b"):
        write(tmp_path / "raw", {name: 24})
        for path in sorted((tmp_path / "raw" / name).iterdir()):
            path.rename(path.with_name(f"p{int(path.stem) // 3:02d}_{path.stem}.png"))
    manifest = prepare("imagefolder", [tmp_path / "raw"], tmp_path / "set")
    assert manifest.default_split == "grouped811_s41"
    assert manifest.splits["grouped811_s41"].leak_groups_shared == 0


def test_the_doctor_knows_classes_from_images_and_masks(tmp_path: Path):
    [found] = examine([write(tmp_path / "classes", {"cat": 4, "dog": 4})]).findings
    assert (found.dataset, found.form, found.samples, found.problems) == ("imagefolder", "classes", 8, [])
    for folders in (("images", "masks"), ("train", "test"), ("scans", "labels"), ("training", "validation")):
        with open_sources([write(tmp_path / folders[0], dict.fromkeys(folders, 4))]) as source:
            assert imagefolder.recognise(source) is None, folders


def with_masks(folder: Path, images: str, masks: str, parts: tuple[str, ...] = ("",)) -> Path:
    """`images` and `masks`: names with {n}."""
    rng = np.random.default_rng(0)
    for part in parts:
        for n in range(6):
            for name, pixels in (
                (images, rng.integers(0, 256, (32, 40, 3), np.uint8)),
                (masks, (np.indices((32, 40)).sum(0) > 20 + n).astype(np.uint8) * 255),
            ):
                path = folder / part / name.format(n=n)
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
    return folder


@pytest.mark.parametrize(
    ("images", "masks", "parts"),
    [
        ("images/{n}.png", "masks/{n}.png", ("",)),
        ("images/{n}.png", "masks/{n}.png", ("train", "val")),
        ("photos/{n}.jpg", "Ground truth/{n}_gt.png", ("train",)),
    ],
)
def test_images_and_masks_are_refused(images: str, masks: str, parts: tuple[str, ...], tmp_path: Path):
    tree = with_masks(tmp_path / "my raw", images, masks, parts)
    with pytest.raises(
        UserError, match=r"holds images and their masks, not classes \(.* of .*\); rwkvctl data d"
    ) as told:
        prepare("imagefolder", [tree], tmp_path / "set")
    assert f"data doctor '{tree}' prints the line of data prepare pairs" in str(told.value)
    assert "\n" not in str(told.value)
    assert not (tmp_path / "set").exists()


def test_masks_beside_their_images_in_folders_of_classes_are_refused(tmp_path: Path):
    for kind in ("benign", "malign"):
        with_masks(tmp_path / "raw", f"{kind}/{{n}}.png", f"{kind}/{{n}}_mask.png")
    with pytest.raises(UserError, match=r"not classes \(benign/\d_mask.png of benign/\d.png\)"):
        prepare("imagefolder", [tmp_path / "raw"], tmp_path / "set")


def test_what_only_looks_like_masks_is_a_warning(tmp_path: Path):
    tree = with_masks(tmp_path / "raw", "full/{n}.png", "empty/{n}.png")
    notes = prepare("imagefolder", [tree], tmp_path / "set").content.warnings
    assert any("two classes have files of the same names, as images and masks do (empty/" in note for note in notes)


@pytest.mark.parametrize("names", [("with_mask", "without_mask"), ("label_a", "b")])
def test_photographs_of_classes_that_are_called_after_masks(names: tuple[str, str], tmp_path: Path):
    tree = write(tmp_path / "raw", dict.fromkeys(names, 6))
    assert prepare("imagefolder", [tree], tmp_path / "set").content.warnings == []


@pytest.mark.parametrize(
    ("classes", "options", "said"),
    [
        ({"one": 4}, {}, "no class folders here; give the folder that has one folder of images for each class"),
        ({"a": 1, "b": 2}, {}, "no class has 3 images, so there is nothing to validate on; add some"),
        ({"train/a": 3, "train/b": 3, "val/a": 3, "val/b": 3}, {"ratio": "6:2:2"}, "leave out --ratio and --seed"),
    ],
)
def test_what_are_no_classes(tmp_path: Path, classes: dict[str, int], options: dict[str, str], said: str):
    write(tmp_path / "raw", classes)
    with pytest.raises(UserError, match=said):
        prepare("imagefolder", [tmp_path / "raw"], tmp_path / "set", **options)
    assert not (tmp_path / "set").exists()
    shutil.rmtree(tmp_path / "raw")
