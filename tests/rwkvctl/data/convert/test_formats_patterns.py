"""The format `pairs`: images and masks under any names, paired by two patterns."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rwkvctl.base.errors import UserError
from rwkvctl.data.convert import synth
from rwkvctl.data.convert.prepare import prepare
from rwkvctl.data.convert.synth.pairs import OPTIONS
from rwkvctl.data.store.manifest import Manifest
from rwkvctl.data.store.reader import Reader

from ...cli.test_data import run


@pytest.fixture
def tree(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return synth.write(f"pairs:{request.param}", tmp_path / "tree", n=8, size=32)


def of(form: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("tree", [form], indirect=True)


def made(tree: Path, images: str, masks: str, **options: Any) -> Manifest:
    out = tree.parent / "set"
    return prepare("pairs", [tree], out, images=images, masks=masks, workers=1, seeds=[41], **options)


def refused(tree: Path, match: str, images: str, masks: str, **options: Any) -> str:
    with pytest.raises(UserError, match=match) as caught:
        made(tree, images, masks, **options)
    assert not (tree.parent / "set").exists()
    return str(caught.value)


def masks_of(manifest: Manifest) -> dict[str, np.ndarray]:
    reader = Reader(manifest)
    return {str(reader.meta(row)["orig_path"]): reader.mask(row) for row in range(len(reader))}


def stored(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return (np.asarray(image.convert("L")) > 127).astype(np.uint8)


@pytest.mark.parametrize("form", [form for form in OPTIONS if not form.startswith("volume_")])
def test_every_layout_by_the_command_that_synth_prints(form: str, tmp_path: Path):
    printed = run("synth", f"pairs:{form}", "--out", tmp_path / "raw", "--n", 8, "--size", 32)
    words = shlex.split(printed.partition("next: ")[2])
    assert words[:3] == ["rwkvctl", "data", "prepare"]
    run(*words[2:], "--out", tmp_path / "set")
    assert Manifest.load(tmp_path / "set").content.counts == {"samples": 8, "labeled": 8}


@of("suffix")
def test_other_names_and_endings_in_a_wrapper_or_an_archive(tree: Path, tmp_path: Path):
    manifest = made(tree, "Bilder/*.tif", "Masken/*_maske.gif")
    assert [key.decode() for key in manifest.index.keys][:2] == ["set_größe_1", "set_größe_2"]
    assert manifest.content.source.form == "Bilder/*.tif and Masken/*_maske.gif"
    assert "1 image files are no part of a pair and were left out: Augen 2019/Vorschau.png" in (
        manifest.content.warnings
    )
    expected = stored(tree / "Augen 2019" / "Masken" / "Größe 3_maske.gif")
    np.testing.assert_array_equal(masks_of(manifest)["Bilder/Größe 3.tif"], expected)
    archive = shutil.make_archive(str(tmp_path / "raw"), "zip", tree)
    zipped = prepare("pairs", [archive], tmp_path / "z", name="set", seeds=[41], images="Bilder/*", masks="Masken/*_*")
    assert zipped.content.samples_sha256 == manifest.content.samples_sha256


@of("annotators")
def test_several_masks_are_joined_or_one_annotator_is_taken(tree: Path):
    alone = masks_of(made(tree, "*.jpg", "*_*.png", annotator="2ndho"))
    np.testing.assert_array_equal(alone["Image_01L.jpg"], stored(tree / "Image_01L_2ndHO.png"))
    union = made(tree, "*.jpg", "*_*.png", overwrite=True)
    both = [stored(tree / f"Image_01L_{who}.png") for who in ("1stHO", "2ndHO")]
    np.testing.assert_array_equal(masks_of(union)["Image_01L.jpg"], np.maximum(*both))
    note = "8 images have several masks: their union is taken; 1stHO, 2ndHO alone with --annotator"
    assert note in union.content.warnings


@of("annotators")
def test_an_annotator_who_is_not_there(tree: Path):
    refused(tree, "--annotator x: is in no name of a mask; there is 1stHO, 2ndHO", "*.jpg", "*_*.png", annotator="x")
    refused(tree, "give --masks a wildcard for it", "*.jpg", "*_1stHO.png", annotator="1stHO")
    (tree / "Image_02R_2ndHO.png").unlink()
    refused(tree, "Image_02R.jpg: has no mask of annotator 2ndHO", "*.jpg", "*_*.png", annotator="2ndHO")
    assert len(made(tree, "*.jpg", "*_*.png", annotator="2ndHO", allow_partial=True).index) == 7


@of("annotators")
def test_the_longest_image_name_has_the_mask(tree: Path):
    """`Image_01L_b_1stHO` is of `Image_01L_b`, not the mask `b_1stHO` of `Image_01L`."""
    shutil.copy(tree / "Image_02L.jpg", tree / "Image_01L_b.jpg")
    shutil.copy(tree / "Image_02L_1stHO.png", tree / "Image_01L_b_1stHO.png")
    masks = masks_of(made(tree, "*.jpg", "*_*.png", annotator="1stHO"))
    np.testing.assert_array_equal(masks["Image_01L_b.jpg"], stored(tree / "Image_02L_1stHO.png"))
    np.testing.assert_array_equal(masks["Image_01L.jpg"], stored(tree / "Image_01L_1stHO.png"))


@of("instances")
def test_objects_are_joined(tree: Path):
    masks = masks_of(made(tree, "{id}/images/*.png", "{id}/masks/{n}.png"))
    assert len(masks) == 8
    for path, mask in masks.items():
        objects = [stored(own) for own in (tree / path).parent.parent.glob("masks/*.png")]
        np.testing.assert_array_equal(mask, np.maximum(*objects))


@of("classes")
@pytest.mark.parametrize("folders", [False, True])
def test_one_file_a_class(tree: Path, folders: bool):
    """By a suffix, or in a folder for each class; which wildcard is the image's is found."""
    pattern = "organ/*_*.png"
    if folders:
        pattern = "organ/*/*.png"
        for path in list((tree / "organ").iterdir()):
            stem, _, kind = path.stem.rpartition("_")
            (tree / "organ" / kind).mkdir(exist_ok=True)
            path.rename(tree / "organ" / kind / f"{stem}.png")
    manifest = made(tree, "foto/*.jpg", pattern, classes=["background", "Heart", "lung"])
    own = [tree / "organ" / (f"{kind}/case_1.png" if folders else f"case_1_{kind}.png") for kind in ("heart", "lung")]
    heart, lung = map(stored, own)
    np.testing.assert_array_equal(masks_of(manifest)["foto/case_1.jpg"], np.where(lung, 2, heart))
    assert set(np.unique(masks_of(manifest)["foto/case_3.jpg"])) == {0, 1}
    assert "one mask a class (heart, lung): 2 images have 1, 6 images have 2" in manifest.content.warnings
    assert any("masks of several classes overlap" in text for text in manifest.content.warnings)


@of("classes")
def test_classes_that_are_not_the_masks(tree: Path):
    refused(tree, "--classes: has no lung", "foto/*", "organ/*_*.png", classes=["background", "heart", "liver"])
    refused(tree, r"several masks \(heart, lung\), none", "foto/*", "organ/*_*.png", classes=["background", "a", "b"])
    refused(tree, "--classes: has no heart, lung", "foto/*", "organ/*_{class}.png")


@of("parts")
def test_folders_are_the_split(tree: Path):
    manifest = made(tree, "*/Fotos/*", "*/Ground truth/*", split_from="folders")
    assert list(manifest.splits) == ["folders"]
    assert manifest.splits["folders"].counts == {"train": 4, "val": 2, "test": 2}
    assert manifest.ids(None, "test") == ["set_test_1", "set_test_2"]
    shutil.rmtree(tree / "Validate")
    manifest = made(tree, "{split}/Fotos/*", "{split}/Ground truth/*", split_from="folders", overwrite=True)
    assert manifest.splits["folders"].counts == {"train": 3, "val": 1, "test": 2}


@of("parts")
def test_masks_of_another_part_are_not_joined(tree: Path):
    refused(tree, "masks of one image are in TEST, Training", "Training/Fotos/*", "**/Ground truth/*")
    refused(tree, "--split-from csv: give folders", "*/Fotos/*", "*/Ground truth/*", split_from="csv")


@of("suffix")
def test_orphans_are_named_and_left_out_on_demand(tree: Path):
    masks = tree / "Augen 2019" / "Masken"
    for number in (1, 2, 3, 4):
        (masks / f"Größe {number}_maske.gif").rename(masks / f"x{number}_maske.gif")
    lines = refused(tree, "8 problems of 2 kinds", "Bilder/*", "Masken/*_maske.*").splitlines()
    assert [sum(f"has no {what};" in line for line in lines) for what in ("mask", "image")] == [3, 3]
    assert sum("... and 1 more like this, 4 in all" in line for line in lines) == 2
    made(tree, "Bilder/*", "Masken/*_maske.*", allow_partial=True)
    left = "left out     8: Augen 2019/Bilder/Größe 1.tif, Augen 2019/Bilder/Größe 2.tif, Augen 2019/Bilder/Größe 3.tif"
    assert left in run("show", tree.parent / "set")


@of("suffix")
def test_what_is_wrong_with_patterns(tree: Path):
    with pytest.raises(UserError, match="--images and --masks: give a pattern each, in quotes"):
        prepare("pairs", [tree], tree.parent / "set", images="Bilder/*")
    refused(tree, r"--masks 'masks/\*': matches none of the 17 images .* there is Augen 2019/", "Bilder/*", "masks/*")
    refused(tree, "both match .* tell them apart", "**", "**")
    refused(tree, "2 wildcards without a name, --masks .* has 1", "*/*.tif", "Masken/*")
    with pytest.raises(UserError, match="--images: folder has no such choice"):
        prepare("folder", [tree], tree.parent / "set", images="Bilder/*")


def test_a_suffix_alone_tells_masks_from_images(tmp_path: Path):
    """`*.png` matches the masks as well: they are of the pattern that says more."""
    tree = synth.write("folder", tmp_path / "tree", n=8, size=32)
    for path in (tree / "masks").iterdir():
        path.rename(tree / "images" / f"{path.stem}_Maske.png")
    assert len(made(tree, "images/*", "images/*_maske.png").index) == 8
