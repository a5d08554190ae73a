"""What `data doctor` says of the masks of one's own images, and what is wrong with them."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rwkvctl.data.convert import synth
from rwkvctl.data.convert.synth.traps import LFS_POINTER
from rwkvctl.data.guess.doctor import Finding, examine

from ...cli.test_data import run


def seen(tree: Path) -> Finding:
    (finding,) = examine([tree]).findings
    return finding


@pytest.mark.parametrize(
    ("form", "found"),
    [
        ("grey", "4 grey values (0, 85, 170, 255), 30 of 30 opened"),
        ("colour", "3 colours (#000000, #00ff00, #ff8000), 30 of 30 opened"),
        ("palette", "4 indices of a palette (0, 1, 2, 255), 30 of 30 opened"),
        ("ids", "4 class ids (0, 1, 2, 3), 30 of 30 opened"),
        ("jpegmasks", "3 grey values (0, 128, 255, JPEG), 30 of 30 opened"),
        ("suffix", "two classes (0, 255), 24 of 30 opened"),
    ],
)
def test_what_masks_hold(form: str, found: str, tmp_path: Path):
    """Of masks of several classes more are opened, so that the one with id 3 is not missed."""
    tree = synth.write(f"pairs:{form}", tmp_path / "tree", n=30, size=48)
    assert seen(tree).masks == found


def test_numbers_of_objects(tmp_path: Path):
    finding = seen(synth.write("pairs:objects", tmp_path / "tree", n=10, size=64))
    assert finding.masks.startswith("numbers of single objects, up to ")
    assert finding.options.endswith("--classes background=0,object=1-65535")


def test_the_lines_of_a_table_of_classes_are_said(tmp_path: Path):
    tree = synth.write("pairs:colour", tmp_path / "tree", n=6, size=48)
    assert "classes.csv with a line each: background,#000000 class1,#00ff00 class2,#ff8000" in seen(tree).question


def test_a_table_that_lies_beside_the_masks_is_taken(tmp_path: Path):
    tree = synth.write("pairs:colour", tmp_path / "tree", n=6, size=48)
    (tree / "legend.csv").write_text("name;r;g;b\nBoden;0;0;0\nStiel;0;255;0\nBlatt;255;128;0\n")
    assert f"--classes {tree / 'legend.csv'}" in seen(tree).options
    (tree / "legend.csv").write_text("name;r;g;b\nBoden;0;0;0\nStiel;0;255;0\n")
    assert "class1=#00ff00" in seen(tree).options, "it has not all colours"


def test_folders_called_images_and_masks_too(tmp_path: Path):
    tree = synth.write("pairs:grey", tmp_path / "tree", n=6, size=48)
    (tree / "scan").rename(tree / "images")
    (tree / "scan_label").rename(tree / "masks")
    finding = seen(tree)
    assert (finding.dataset, finding.options) == ("folder", "--classes background=0,class1=85,class2=170,class3=255")
    assert "--classes background=0,class1=85" in run("doctor", tree)


def faults(tree: Path, code: int = 1) -> list[str]:
    printed = run("doctor", tree, code=code)
    return [line.partition("problem  ")[2] for line in printed.splitlines() if "  problem  " in line]


def test_pointers_and_empty_files_are_named_three_and_counted(tmp_path: Path):
    tree = synth.write("pairs:grey", tmp_path / "tree", n=12, size=48)
    for number in (1, 2, 3, 4):
        (tree / "scan_label" / f"{number}.png").write_bytes(LFS_POINTER)
        (tree / "scan" / f"{number + 4}.png").write_bytes(b"")
    said = faults(tree)
    assert sum("is a Git LFS pointer, not the file itself" in text for text in said) == 3
    assert sum("empty file; replace it" in text for text in said) == 3
    assert said.count("... and 1 more like this, 4 in all") == 2
    line = run("doctor", tree, code=1).partition("  prepare  ")[2]
    assert line.strip().endswith("--allow-partial")


def test_sizes_that_differ_are_both_in_the_line(tmp_path: Path):
    tree = synth.write("pairs:grey", tmp_path / "tree", n=8, size=50)
    for number in range(1, 9):
        with Image.open(tree / "scan_label" / f"{number}.png") as mask:
            mask.resize((40, 64)).save(tree / "scan_label" / f"{number}.png")
    said = faults(tree)
    assert said[0].endswith("scan_label/1.png: is 40 x 64, its image 1.png is 50 x 40; give them one size")
    assert said[3] == "... and 5 more like this, 8 in all"


def test_outlines_instead_of_areas(tmp_path: Path):
    tree = synth.write("pairs:suffix", tmp_path / "tree", n=8, size=64)
    for path in (tree / "Augen 2019" / "Masken").iterdir():
        shape = np.zeros((51, 64), np.uint8)
        shape[10:40, 10:50] = 255
        shape[11:39, 11:49] = 0
        Image.fromarray(shape).save(path)
    said = faults(tree)
    assert said[0].endswith("mask is a thin outline, not an area; fill the outlines, or give the masks that show areas")
    assert said[3] == "... and 5 more like this, 8 in all"
    patterns = ("--images", "Bilder/*", "--masks", "Masken/*_maske")
    made = run("prepare", "pairs", "--source", tree, *patterns, "--out", tmp_path / "set")
    assert "8 of 8 images: mask is a thin outline, not an area: set_größe_1, set_größe_2, set_größe_3" in made


def test_photographs_are_no_masks(tmp_path: Path):
    tree = synth.write("pairs:grey", tmp_path / "tree", n=6, size=64)
    for path in (tree / "scan_label").iterdir():
        noise = np.random.default_rng(0).integers(0, 255, (10, 13, 3)).astype(np.uint8)
        Image.fromarray(noise).resize((64, 51), Image.Resampling.NEAREST).save(path)
    assert "has too many colours for labels; give the pattern of the masks" in faults(tree)[0]


def test_masks_that_are_white_around_or_smaller_are_said(tmp_path: Path):
    tree = synth.write("pairs:suffix", tmp_path / "tree", n=6, size=48)
    for path in (tree / "Augen 2019" / "Masken").iterdir():
        with Image.open(path) as mask:
            grey = Image.fromarray(255 - np.asarray(mask.convert("L")))
        grey.resize((24, 19), Image.Resampling.NEAREST).save(path)
    finding = seen(tree)
    assert finding.question.endswith("is it the background, add --classes background=255,foreground=0")
    assert "6 of 6 masks are resized to their images: Augen 2019/Masken/Größe 1_maske.gif (24 x 19, its" in (
        "".join(finding.warnings)
    )


def test_masks_in_two_encodings_are_not_joined(tmp_path: Path):
    tree = synth.write("pairs:ids", tmp_path / "tree", n=6, size=48)
    for path in tree.glob("*_labels.png"):
        with Image.open(path) as mask:
            colours = np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)[np.asarray(mask)]
        Image.fromarray(colours).save(path.with_name(path.name.replace("labels", "colour")))
    finding = seen(tree)
    assert finding.options.endswith("--masks '*_labels' --classes background,class1,class2,class3")
    assert "masks could also be --masks '*_colour'; which of them is meant is yours to say" in finding.question


def test_a_palette_whose_first_colour_is_not_black(tmp_path: Path):
    tree = synth.write("pairs:ids", tmp_path / "tree", n=6, size=48)
    for path in tree.glob("*_labels.png"):
        with Image.open(path) as mask:
            indexed = Image.fromarray(np.asarray(mask))
        indexed.putpalette([9, 9, 9, 200, 0, 0, 0, 200, 0, 0, 0, 200])
        indexed.save(path)
    finding = seen(tree)
    assert finding.options.endswith("--classes background=0,class1=1,class2=2,class3=3")
    line = run("doctor", tree).partition("  prepare  ")[2]
    assert "class3 " in run(*shlex.split(line)[2:], "--out", tmp_path / "set")


def test_a_class_that_only_one_mask_has(tmp_path: Path):
    tree = synth.write("pairs:ids", tmp_path / "tree", n=60, size=32)
    for number in range(1, 61):
        with Image.open(path := tree / f"case-{number}_labels.png") as mask:
            ids = np.minimum(np.asarray(mask), 2 if number == 31 else 1)
        Image.fromarray(ids).save(path)
    assert seen(tree).masks == "3 class ids (0, 1, 2), 60 of 60 opened"


def test_masks_of_one_image_that_lie_apart_are_of_a_class_each(tmp_path: Path):
    apart = seen(synth.write("pairs:classes", tmp_path / "apart", n=8, size=48))
    assert apart.options.endswith("--classes background,heart,lung")
    assert "one mask a class (heart, lung): 2 images have 1, 6 images have 2" in apart.warnings
    same = seen(synth.write("pairs:annotators", tmp_path / "same", n=8, size=48))
    assert "--classes" not in same.options
    assert same.options.endswith("--annotator 1stHO")
    assert "masks of one thing are by several (1stHO, 2ndHO)" in same.question
