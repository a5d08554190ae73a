"""All images in one array and their masks or classes in another: written by NumPy and h5py, prepared as doctor says."""

from __future__ import annotations

import io
import re
import shlex
import zipfile
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import pytest

from rwkvctl.base.errors import UserError
from rwkvctl.data.convert import stack_axes, synth
from rwkvctl.data.convert.prepare import prepare
from rwkvctl.data.guess.doctor import examine
from rwkvctl.data.store.manifest import Manifest
from rwkvctl.data.store.reader import Reader
from rwkvctl.data.store.verify import verify

from ...cli.test_data import run

N, H, W = 12, 24, 32
RNG = np.random.default_rng(0)
PHOTOS = RNG.integers(0, 256, (N, H, W, 3), np.uint8)
GREY = PHOTOS[..., 0]
MASKS = np.zeros((N, H, W), np.uint8)
for _number in range(N):
    MASKS[_number, 4 + _number % 8 : 16, 5:20] = 1
IDS = (MASKS + (MASKS * (PHOTOS[..., 0] > 200)) * 2).astype(np.uint8)  # 0, 1, 3


def written(folder: Path, kind: str, arrays: dict[str, Any]) -> Path:
    folder.mkdir()
    if kind == "npy":
        for name, array in arrays.items():
            np.save(folder / f"{name}.npy", array)
    elif kind == "npz":
        np.savez(folder / "set.npz", **arrays)
    elif kind == "packed":
        np.savez_compressed(folder / "set.npz", **arrays)
    else:
        with h5py.File(folder / "set.h5", "w") as file:
            for name, array in arrays.items():
                file.create_dataset(name, data=array, compression="gzip")
    return folder


def as_doctor_says(tree: Path, out: Path) -> tuple[Manifest, str]:
    printed = run("doctor", tree)
    (line,) = re.findall(r"^  prepare  rwkvctl data (.*)$", printed, re.MULTILINE)
    assert len(re.findall(r"^  pair ", printed, re.MULTILINE)) == 3, printed
    run(*shlex.split(line), "--out", out)
    assert verify(out, deep=True).problems == []
    return Manifest.load(out), printed


def row_of(reader: Reader, name: str) -> int:
    (row,) = (row for row in range(len(reader)) if reader.meta(row)["id"].endswith(name))
    return row


def check(made: Manifest, images: np.ndarray, masks: np.ndarray, prefix: str = "") -> None:
    reader = Reader(made)
    for number in range(len(images)):
        row = row_of(reader, f"{prefix}{number:06d}")
        image = reader.image(row)
        own = images[number] if images[number].ndim == 3 else np.repeat(images[number][..., None], 3, -1)
        np.testing.assert_array_equal(image, own)
        np.testing.assert_array_equal(reader.mask(row), masks[number])


@pytest.mark.parametrize("kind", ["npy", "npz", "packed", "hdf5"])
@pytest.mark.parametrize("scale", [1, 255])
def test_photographs_of_parts(kind: str, scale: int, tmp_path: Path):
    cuts = {"train": slice(0, 8), "val": slice(8, 10), "test": slice(10, 12)}
    arrays = {}
    for part, cut in cuts.items():
        arrays |= {f"data_{part}": PHOTOS[cut], f"mask_{part}": MASKS[cut] * np.uint8(scale)}
    made, _ = as_doctor_says(written(tmp_path / "tree", kind, arrays), tmp_path / "set")
    assert list(made.content.splits) == ["given"]
    for part, cut in cuts.items():
        ids = made.split_ids("given")[part]
        assert ids == [f"set_{part}_{number:06d}" for number in range(len(PHOTOS[cut]))]
        check(made, PHOTOS[cut], MASKS[cut], f"{part}_")


@pytest.mark.parametrize(
    ("names", "image", "label", "axes"),
    [
        (("X", "Y"), PHOTOS, MASKS[..., None], ""),
        (("images", "masks"), PHOTOS.transpose(0, 3, 1, 2), MASKS.astype(bool), ""),
        (("imgs", "imgs_mask"), GREY[..., None], MASKS[..., None].astype(np.float64), ""),
        (("images", "masks"), GREY[:, None], MASKS[:, None].astype(np.int64), ""),
        (("images", "masks"), GREY, MASKS.astype(np.float32), "--axes nyx"),
        (("images", "masks"), PHOTOS, np.stack([1 - MASKS, MASKS], -1).astype(np.float32), ""),
        (("images", "masks"), PHOTOS, np.stack([1 - MASKS, MASKS], 1) * np.uint8(255), ""),
        (("images", "masks"), PHOTOS, np.repeat(MASKS[..., None], 3, -1) * np.uint8(255), ""),
        (("images", "masks"), np.asfortranarray(PHOTOS), np.asfortranarray(MASKS), ""),
    ],
    ids=[
        "keras",
        "channels first",
        "kaggle",
        "one channel first",
        "grey",
        "onehot",
        "planes",
        "grey colours",
        "fortran",
    ],
)
@pytest.mark.parametrize("kind", ["npy", "hdf5"])
def test_shapes_and_types(
    names: tuple[str, str], image: np.ndarray, label: np.ndarray, axes: str, kind: str, tmp_path: Path
):
    tree = written(tmp_path / "tree", kind, dict(zip(names, (image, label), strict=True)))
    made, printed = as_doctor_says(tree, tmp_path / "set")
    assert axes in printed
    wanted = GREY if 3 not in image.shape else PHOTOS
    check(made, wanted, MASKS)


@pytest.mark.parametrize("top", [1, 255])
def test_floats_are_scaled_by_the_range_that_doctor_gives(top: int, tmp_path: Path):
    own = PHOTOS.astype(np.float64) / 255 * top
    tree = written(tmp_path / "tree", "packed", {"images": own, "masks": MASKS.astype(np.float32)})
    made, printed = as_doctor_says(tree, tmp_path / "set")
    assert f"--range 0,{top}" in printed
    check(made, PHOTOS, MASKS)


def test_floats_beyond_are_black_and_white_at_the_ends(tmp_path: Path):
    own = (GREY.astype(np.float32) - 128) / 50
    tree = written(tmp_path / "tree", "npy", {"images": own, "masks": MASKS})
    made, printed = as_doctor_says(tree, tmp_path / "set")
    assert "which become black and white; --range gives others" in printed
    low, high = own.min(), own.max()
    check(made, np.rint((own.astype(np.float64) - low) / (float(high) - low) * 255).astype(np.uint8), MASKS)


def test_several_classes_and_channels(tmp_path: Path):
    images = np.concatenate([PHOTOS, 255 - PHOTOS[..., :2]], -1)
    made, printed = as_doctor_says(
        written(tmp_path / "tree", "npy", {"images": images, "masks": IDS}), tmp_path / "set"
    )
    assert "are taken for images; are they slices of one volume" in printed
    assert made.content.channel_names == [f"channel {number}" for number in range(1, 6)]
    reader = Reader(made)
    for number in range(N):
        row = row_of(reader, f"{number:06d}")
        np.testing.assert_allclose(reader.image(row), images[number] / 255, atol=1e-6)
        np.testing.assert_array_equal(reader.mask(row), np.array([0, 1, 255, 2])[IDS[number]])


def test_masks_that_were_smoothed_by_resizing(tmp_path: Path):
    soft = np.stack([cv2.resize(own.astype(np.float32), (12 * W, 12 * H)) for own in MASKS])
    soft = np.stack([cv2.GaussianBlur(own, (0, 0), 1.5) for own in soft])
    large = PHOTOS.repeat(12, 1).repeat(12, 2)
    made, printed = as_doctor_says(written(tmp_path / "tree", "npy", {"X": large, "Y": soft}), tmp_path / "set")
    assert "masks " in printed
    check(made, large, np.rint(soft * 255) > 127)
    small = written(tmp_path / "small", "npy", {"X": PHOTOS, "Y": np.clip(MASKS * 0.5 + GREY / 510, 0, 1)})
    with pytest.raises(UserError, match=r"Y.npy\[0\]: mask values .*; a binary mask has 0 and 255"):
        prepare("stacked", [small], tmp_path / "other")


def test_patients_keep_together(tmp_path: Path):
    tree = written(tmp_path / "tree", "npz", {"images": PHOTOS, "masks": MASKS, "patient_ids": np.arange(N) // 3})
    made, printed = as_doctor_says(tree, tmp_path / "set")
    assert "4 groups of up to 3 images by an array of the source" in printed
    reader = Reader(made)
    assert [reader.meta(row)["group_id"] for row in range(N)] == [str(number // 3) for number in range(N)]
    alone = prepare("stacked", [tree], tmp_path / "alone", groups="none")
    assert not any(name.startswith("grouped") for name in alone.content.splits)


@pytest.mark.parametrize(
    ("arrays", "match"),
    [
        (
            {"images": PHOTOS, "masks": MASKS[:-1]},
            r"images.npy: has 12 images \(12, 24, 32, 3\), .*masks.npy 11; give as",
        ),
        (
            {"images": np.array([PHOTOS[0], None], object), "masks": MASKS},
            "images.npy: holds Python objects in 'its array'",
        ),
        ({"images": PHOTOS, "masks": np.where(MASKS, np.nan, 0.0)}, r"masks.npy\[0\]: label values nan are not whole"),
        (
            {"images": PHOTOS, "masks": MASKS.astype(np.int8) - 1},
            r"masks.npy\[0\]: label values -1..0; give whole numbers",
        ),
        ({"images": PHOTOS, "masks": MASKS * 1.5}, r"masks.npy\[0\]: label values 1.5 are not whole numbers; save"),
        (
            {"images": np.where(PHOTOS > 250, np.nan, 1.0), "masks": MASKS},
            r"images.npy\[0\]: has pixels that are NaN or inf",
        ),
        (
            {"images": GREY, "masks": MASKS},
            "images.npy: 12 of .* are taken for images; are they slices of one volume, .*nyx",
        ),
        ({"images": PHOTOS, "masks": MASKS[:, :-1]}, r"images.npy: has shape \(12, 24, 32, 3\), .*, which do not fit"),
        ({"images": np.zeros((4, 40, 40, 40)), "masks": np.zeros((4, 40, 40, 40))}, "4 of .* are taken for volumes"),
        (
            {"images": np.zeros((4, 40, 48, 56, 1)), "masks": np.zeros((4, 40, 48, 56))},
            "holds volumes nzyxc; save each in",
        ),
        (
            {"images": PHOTOS, "masks": np.stack([MASKS * 0.3, MASKS * 0.7], -1)},
            "of which each should hold 0 and one other",
        ),
        (
            {"images": PHOTOS, "masks": np.stack([MASKS] * 4, -1)},
            "--classes: .* has 4 planes; name 5 with the background",
        ),
        ({"images": PHOTOS, "outlines": MASKS}, r"no stack of images with one of labels \(arrays: images .* --inside"),
        ({"images": PHOTOS, "masks": MASKS, "masks_train": MASKS, "images_train": PHOTOS}, "says no part, others do"),
        ({"images": PHOTOS, "masks": MASKS, "labels": MASKS}, "which of .* is meant is yours to say: --inside"),
        ({"images": PHOTOS, "labels": np.zeros(N)}, "has labels, not masks; data prepare stackedclasses takes them"),
        ({"images": PHOTOS, "masks": MASKS, "patients": np.zeros(3)}, "patients.npy: has 3 entries, the images are 12"),
    ],
)
def test_what_is_wrong_is_one_line(arrays: dict[str, Any], match: str, tmp_path: Path):
    tree = tmp_path / "tree"
    tree.mkdir()
    for name, array in arrays.items():
        np.save(tree / f"{name}.npy", array, allow_pickle=True)
    with pytest.raises(UserError, match=match):
        prepare("stacked", [tree], tmp_path / "set")
    assert not (tmp_path / "set").exists()
    if "images.npy: " not in match or "Python" in match:
        examine([tree])  # says something of it, too


def test_options_that_are_wrong(tmp_path: Path):
    tree = written(tmp_path / "tree", "npy", {"scans": PHOTOS, "outlines": MASKS})
    for options, match in (
        ({"inside": "scans"}, "--inside scans: give the names of two arrays"),
        ({"inside": "scans,outlines", "axes": "nyx"}, r"--axes nyx: does not fit .* \(12, 24, 32, 3\)"),
        ({"inside": "scans,outlines", "axes": "zyx"}, "--axes zyx: does not fit"),
        ({"inside": "scans,outlines", "groups": "p"}, "--groups p: images of a stack have no names"),
        ({"inside": "scans,outlines", "classes": ["one"]}, "--classes: name at least two"),
    ):
        with pytest.raises(UserError, match=match):
            prepare("stacked", [tree], tmp_path / "set", **options)  # type: ignore[arg-type]
    check(prepare("stacked", [tree], tmp_path / "set", inside="scans,outlines"), PHOTOS, MASKS)
    turned = written(tmp_path / "turned", "hdf5", {"images": PHOTOS.transpose(3, 2, 1, 0), "masks": MASKS.T})
    check(prepare("stacked", [turned], tmp_path / "back", axes="cxyn"), PHOTOS, MASKS)  # as MATLAB saves them


def test_stacks_in_an_archive_and_one_that_is_cut_off(tmp_path: Path):
    tree = written(tmp_path / "tree", "npy", {"X_train": PHOTOS, "y_train": MASKS})
    with zipfile.ZipFile(tmp_path / "set.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        for path in tree.iterdir():
            packed.write(path, path.name)
    check(prepare("stacked", [tmp_path / "set.zip"], tmp_path / "set"), PHOTOS, MASKS, "train_")
    path = tree / "X_train.npy"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"X_train.npy: is cut off, 100 bytes are missing; copy it again"):
        prepare("stacked", [tree], tmp_path / "other")


def test_volumes_in_files_are_no_stacks(tmp_path: Path):
    for number in range(4):
        np.save(tmp_path / f"case{number}_img.npy", RNG.normal(size=(20, 32, 32)))
        np.save(tmp_path / f"case{number}_seg.npy", np.ones((20, 32, 32), np.uint8))
    assert [own.dataset for own in examine([tmp_path]).findings] == ["pairs"]


@pytest.mark.parametrize(
    ("image", "label", "axes", "asked"),
    [
        ((9, 64, 64), (9, 64, 64), ("nyx", "nyx"), True),
        ((9, 64, 64, 3), (9, 64, 64), ("nyxc", "nyx"), False),
        ((9, 64, 64, 2), (9, 64, 64), ("nyxc", "nyx"), True),
        ((9, 3, 64, 64), (9, 1, 64, 64), ("ncyx", "ncyx"), False),
        ((9, 64, 64, 1), (9, 64, 64, 1), ("nyxc", "nyxc"), False),
        ((9, 16, 16, 16), (9, 16, 16), ("nyxc", "nyx"), True),
        ((9, 40, 64, 64), (9, 40, 64, 64), ("nzyx", "nzyx"), True),
        ((9, 40, 64, 64, 2), (9, 40, 64, 64), ("nzyxc", "nzyx"), False),
    ],
)
def test_axes(image: tuple[int, ...], label: tuple[int, ...], axes: tuple[str, str], asked: bool):
    first = stack_axes.of_pair(image, label)[0]
    assert ((first.image, first.label), bool(first.question)) == (axes, asked)


# Classes ------------------------------------------------------------------------------------------------------------

LABELS = np.arange(N) % 3


@pytest.mark.parametrize("kind", ["npy", "npz", "packed", "hdf5"])
@pytest.mark.parametrize("images", [PHOTOS, GREY], ids=["colours", "grey"])
def test_medmnist(kind: str, images: np.ndarray, tmp_path: Path):
    cuts = {"train": slice(0, 6), "val": slice(6, 9), "test": slice(9, 12)}
    arrays = {}
    for part, cut in cuts.items():
        arrays |= {f"{part}_images": images[cut], f"{part}_labels": LABELS[cut, None].astype(np.uint8)}
    made, _ = as_doctor_says(written(tmp_path / "tree", kind, arrays), tmp_path / "set")
    assert (made.task, made.classes, list(made.content.splits)) == ("classification", ["0", "1", "2"], ["official"])
    reader = Reader(made)
    for row in range(N):
        meta = reader.meta(row)
        number = int(re.search(r"(\d{6})\.png$", meta["orig_path"])[1]) + cuts[meta["part"]].start  # type: ignore[index]
        own = images[number] if images.ndim == 4 else np.repeat(images[number][..., None], 3, -1)
        np.testing.assert_array_equal(reader.image(row), own)
        assert meta["class"] == str(LABELS[number])
        assert meta["id"] in made.split_ids("official")[meta["part"]]


@pytest.mark.parametrize(
    ("arrays", "options", "match"),
    [
        ({"X": PHOTOS, "y": LABELS[:-1]}, {}, "y.npy: has 11 labels, its images are 12; give as many"),
        ({"X": PHOTOS, "y": np.ones((N, 3))}, {}, "has 3 labels an image, not all of them with a single 1"),
        ({"X": PHOTOS, "y": LABELS * 0.5}, {}, "labels are not whole numbers; save them as integers"),
        ({"X": PHOTOS, "y": np.zeros(N)}, {}, "has one label alone, 0; at least two classes are needed"),
        ({"X": PHOTOS, "y": np.arange(N)}, {}, "has 12 different labels of 12 images, which are no classes"),
        (
            {"X": PHOTOS, "y": LABELS},
            {"classes": ["a", "b"]},
            "--classes: names 2, .*y.npy has labels 0 to 2; name all",
        ),
        ({"X": np.zeros((N, 28, 28, 28)), "y": LABELS}, {}, "volumes with a class each are not taken"),
        ({"X": PHOTOS, "y": LABELS}, {"groups": "p"}, "--groups p: images of a stack have no names; leave it out"),
        ({"X": PHOTOS, "y": MASKS}, {}, "has masks, not classes; data prepare stacked takes them"),
        ({"X": PHOTOS, "y": LABELS}, {"axes": "nzyx"}, "or have 1 or 3 channels, which --axes nyxc or ncyx says"),
    ],
)
def test_classes_that_are_wrong(arrays: dict[str, Any], options: dict[str, Any], match: str, tmp_path: Path):
    with pytest.raises(UserError, match=match):
        prepare("stackedclasses", [written(tmp_path / "tree", "npy", arrays)], tmp_path / "set", **options)


@pytest.mark.parametrize(
    "form", ["stacked:npy", "stacked:npz", "stacked:hdf5", "stackedclasses:npz", "stackedclasses:npy"]
)
def test_synthetic_trees(form: str, tmp_path: Path):
    made, _ = as_doctor_says(synth.write(form, tmp_path / "tree", n=12, size=32), tmp_path / "set")
    if form == "stacked:npz":
        with np.load(tmp_path / "tree" / "set.npz") as file:
            check(made, np.rint(file["images"] * 255).astype(np.uint8), file["masks"][..., 0])


def test_a_stack_is_never_in_memory_as_a_whole(tmp_path: Path):
    from rwkvctl.data.convert import array_elements, stacks
    from rwkvctl.data.convert.sources import open_sources

    buffer = io.BytesIO()
    np.savez(buffer, images=PHOTOS, masks=MASKS)
    (tmp_path / "set.npz").write_bytes(buffer.getvalue())
    with open_sources([tmp_path]) as source:
        own = stacks.in_source(source).sets[0].image
        assert isinstance(array_elements._opened(own.file, ""), np.memmap)  # in its place in the npz
