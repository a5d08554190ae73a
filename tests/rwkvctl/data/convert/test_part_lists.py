"""Lists that say what images are for: Pascal VOC's, those with masks in their lines, and those of volumes."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import h5py
import numpy as np
import pytest

from rwkvctl.base.errors import UserError
from rwkvctl.data.convert import synth
from rwkvctl.data.convert.class_table import parse
from rwkvctl.data.convert.prepare import prepare
from rwkvctl.data.store.manifest import Manifest

from ...cli.test_data import run

PATTERNS = {
    "images": "JPEGImages/*",
    "masks": "SegmentationClass/*",
    "classes": parse("background=0,cup=1,disc=2,ignore=255"),
}


def write(path: Path, lines: Iterable[str], end: str = "\n") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(end.join(lines).encode())


def number(names: list[str]) -> list[int]:
    return sorted(int(name[-4:]) for name in names)


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """Twelve pairs and three photographs without masks. Segmentation's lists have ten pairs, Main's photographs too,
    and trainval.txt both parts."""
    tree = synth.write("pairs:palette", tmp_path / "VOC2012", n=12, size=32)
    ids = [f"2019_{n:06d}" for n in range(1, 13)]
    for n in (97, 98, 99):
        shutil.copy(tree / "JPEGImages" / "2019_000001.jpg", tree / "JPEGImages" / f"2019_{n:06d}.jpg")
    lists = tree / "ImageSets" / "Segmentation"
    for name, own in (("train", ids[:7]), ("val", ids[7:10]), ("trainval", ids[:10])):
        write(lists / f"{name}.txt", own, "\r\n")
    more = [f"2019_{n:06d}" for n in (97, 98, 99)]
    write(tree / "ImageSets" / "Main" / "train.txt", [f"{name}  -1" for name in (*ids[:4], *more)])
    write(tree / "ImageSets" / "Main" / "val.txt", [f"{name}   1" for name in ids[4:8]])
    return tree


def prepared(tree: Path, out: Path, **options: object) -> Manifest:
    return prepare("pairs", [tree], out, **(PATTERNS | {"split_from": "lists"} | options))  # type: ignore[arg-type]


def test_pascal_voc(voc: Path, tmp_path: Path):
    made = prepared(voc, tmp_path / "set")
    assert list(made.splits) == ["lists"]
    assert {part: number(ids) for part, ids in made.split_ids("lists").items()} == {
        "train": [1, 2, 3, 4, 5, 6, 7], "val": [8, 9, 10], "test": [],
    }  # fmt: skip
    folder = "ImageSets/Segmentation"
    assert f"the parts are those of {folder}/train.txt, {folder}/val.txt" in made.content.warnings
    left = "2 images are in no list and were left out: JPEGImages/2019_000011.jpg, JPEGImages/2019_000012.jpg"
    assert left in made.content.warnings
    assert made.content.excluded == []
    other = prepared(voc, tmp_path / "main", split_from="ImageSets/Main", allow_partial=True)
    assert {part: number(ids) for part, ids in other.split_ids("lists").items() if ids} == {
        "train": [1, 2, 3, 4], "val": [5, 6, 7, 8],
    }  # fmt: skip
    assert len(other.content.excluded) == 3


def test_the_doctor_prints_it(voc: Path, tmp_path: Path):
    words = shlex.split(run("doctor", voc).partition("  prepare  ")[2])
    assert words[words.index("--split-from") + 1] == "lists"
    run(*words[2:], "--out", tmp_path / "set")
    assert Manifest.load(tmp_path / "set").splits["lists"].counts == {"train": 7, "val": 3, "test": 0}


def test_lines_with_masks_and_paths_of_another_machine(tmp_path: Path):
    """Names with spaces; the test part's masks are kept back; without val, a tenth of train becomes it."""
    tree = synth.write("pairs:suffix", tmp_path / "tree", n=20, size=32)
    root = next(path.parent for path in tree.rglob("Bilder"))
    images = sorted((root / "Bilder").glob("*.tif"))
    by_number = {re.sub(r"\D", "", path.stem): path for path in (root / "Masken").iterdir()}
    masks = {path: by_number[re.sub(r"\D", "", path.stem)] for path in images}
    for path in images[16:]:
        masks[path].unlink()
    write(tree / "train_list.txt", [f"D:\\data\\Bilder\\{path.name}, {masks[path].name}" for path in images[:16]])
    write(tree / "test_list.txt", [path.stem for path in images[16:]] + ["nothing"])
    made = prepare("pairs", [tree], tmp_path / "set", images="*/Bilder/*", masks="*/Masken/*_maske", split_from="lists")
    assert made.splits["lists"].counts == {"train": 14, "val": 2, "test": 0}
    assert "the 4 images of the list for test have no masks and were left out" in made.content.warnings
    assert "1 lines of test_list.txt name no image: nothing" in made.content.warnings


def test_lists_of_volumes(tmp_path: Path):
    tree = synth.write("pairs:volume_suffix", tmp_path / "tree", n=6, size=32)
    for part, own in (("train", (1, 2, 5)), ("valid", (3,)), ("test", (4, 6))):
        write(tree / "lists" / f"{part}.list", [f"case_{n}" for n in own])
    made = prepare(
        "pairs", [tree], tmp_path / "set", images="case_*", masks="case_*_seg", split_from="lists",
        classes=["background", "a", "b", "c"],
    )  # fmt: skip
    [split] = made.splits
    ids = made.split_ids(split)
    assert (number([f"{key[-1]:>04}" for key in ids["val"]]), len(ids["test"])) == ([3], 2)
    assert {key.rpartition("_z")[0][-1] for key in ids["train"]} == {"1", "2", "5"}


def unmasked(tree: Path) -> None:
    (tree / "SegmentationClass" / "2019_000003.png").unlink()


def twice(tree: Path) -> None:
    write(tree / "ImageSets" / "Segmentation" / "val.txt", ["2019_000001"])


def elsewhere(tree: Path) -> None:
    shutil.rmtree(tree / "ImageSets" / "Main")
    write(tree / "other" / "train.txt", ["2019_000001"])
    write(tree / "other" / "val.txt", ["2019_000002"])


def foreign(tree: Path) -> None:
    shutil.rmtree(tree / "ImageSets" / "Main")
    for name in ("train", "val", "trainval"):
        write(tree / "ImageSets" / "Segmentation" / f"{name}.txt", ["a", "b"])


def without(tree: Path) -> None:
    shutil.rmtree(tree / "ImageSets")


@pytest.mark.parametrize(
    ("spoil", "options", "said"),
    [
        (unmasked, {}, "2019_000003.jpg: has no mask; --masks SegmentationClass/* must have what"),
        (twice, {}, "val.txt: has JPEGImages/2019_000001.jpg, which is in train.txt too; remove it from one of them"),
        (elsewhere, {}, "there are lists in ImageSets/Segmentation and other; say which: --split-from ImageSets/Segm"),
        (foreign, {}, "no line of ImageSets/Segmentation/train.txt is an image by --images; correct one of them"),
        (without, {}, "--split-from lists: no train.txt with val.txt or test.txt in"),
        (without, {"split_from": "listen"}, "--split-from listen: give folders, lists, a table (.csv), or a pattern"),
    ],
)
def test_lists_that_are_refused(spoil: Callable[[Path], None], options: dict, said: str, voc: Path, tmp_path: Path):
    spoil(voc)
    with pytest.raises(UserError) as caught:
        prepared(voc, tmp_path / "set", **options)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "set").exists()


def test_lists_and_a_table_are_not_both(voc: Path, tmp_path: Path):
    write(voc / "t.csv", ["image,patient", *(f"2019_{n:06d}.jpg,p{n // 2}" for n in range(1, 13))])
    with pytest.raises(UserError, match="--split-from lists: lists go with --images and --masks; leave out"):
        prepared(voc, tmp_path / "set", csv="t.csv")


# Files with image and label inside ----------------------------------------------------------------------------------


@pytest.fixture
def slices(tmp_path: Path) -> Path:
    """Six volumes as slices, as SSL4MIS has ACDC: the list for training names slices, the others name volumes."""
    tree = tmp_path / "knees"
    rng = np.random.default_rng(0)
    for case in range(1, 7):
        for z in range(3):
            path = tree / "slices" / f"knee{case:03d}_scan_slice_{z}.h5"
            path.parent.mkdir(parents=True, exist_ok=True)
            with h5py.File(path, "w") as file:
                file["image"] = rng.random((32, 32), np.float32) * 300
                file["label"] = (rng.random((32, 32)) < 0.2).astype(np.uint8)
    write(tree / "train_slices.list", [f"knee{case:03d}_scan_slice_{z}" for case in (1, 2, 3) for z in range(3)])
    write(tree / "val.list", ["knee004_scan"])
    write(tree / "test.list", ["knee005_scan"])
    return tree


def test_slices_that_lists_name_by_themselves_or_by_their_volume(slices: Path, tmp_path: Path):
    words = shlex.split(run("doctor", slices).partition("  prepare  ")[2])
    assert words[words.index("--split-from") + 1] == "lists"
    run(*words[2:], "--out", tmp_path / "set")
    made = Manifest.load(tmp_path / "set")
    patients = {
        part: sorted({match[1] for match in map(re.compile(r"knee00(\d)").search, ids) if match})
        for part, ids in made.split_ids("lists").items()
    }
    assert patients == {"train": ["1", "2", "3"], "val": ["4"], "test": ["5"]}
    assert made.splits["lists"].counts == {"train": 9, "val": 1, "test": 1}
    assert "1 images are in no list and were left out: slices/knee006_scan" in made.content.warnings


def test_a_volume_whose_slices_are_in_two_lists(slices: Path, tmp_path: Path):
    write(slices / "val.list", ["knee001_scan_slice_1", "knee004_scan"])
    write(slices / "train_slices.list", [f"knee001_scan_slice_{z}" for z in (0, 2)])
    line = "slices of slices/knee001_scan are in the lists for train and val; a volume is of one part"
    with pytest.raises(UserError, match=line):
        prepare("arrays", [slices], tmp_path / "set", split_from="lists")


def test_what_says_nothing_of_arrays(slices: Path, tmp_path: Path):
    with pytest.raises(UserError, match="--split-from cohort: give folders, for files in train/ and test/, or lists"):
        prepare("arrays", [slices], tmp_path / "set", split_from="cohort")
    (slices / "train_slices.list").unlink()
    with pytest.raises(UserError, match=re.escape("--split-from lists: no train.txt with val.txt or test.txt in")):
        prepare("arrays", [slices], tmp_path / "set", split_from="lists")
