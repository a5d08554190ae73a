"""Masks by a table of classes: exact values and colours, and those that JPEG or resizing has blurred."""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from rwkvctl.base.errors import UserError
from rwkvctl.data.convert.class_table import ClassTable, parse
from rwkvctl.data.convert.formats.by_table import ByTable
from rwkvctl.data.convert.formats.pairs import Mask
from rwkvctl.data.convert.prepare import prepare
from rwkvctl.data.convert.synth.phantom import blobs
from rwkvctl.data.store.manifest import Manifest
from rwkvctl.data.store.reader import Reader

from ...cli.test_data import run

GREYS = np.array([0, 85, 170, 255], np.uint8)
COLOURS = np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)
BY_VALUE = "background=0,a=85,b=170,c=255"
BY_COLOUR = "background=#000000,a=#ff0000,b=#00ff00,c=#0000ff"


def drawn(seed: int = 0, classes: int = 3, shape: tuple[int, int] = (160, 192)) -> np.ndarray:
    rng = np.random.default_rng(seed)
    ids = np.zeros(shape, np.uint8)
    for number in range(1, classes + 1):
        ids[blobs(rng, shape)] = number
    return ids


def encoded(pixels: np.ndarray | Image.Image, kind: str = "PNG", **options: int) -> bytes:
    buffer = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def read(classes: str, data: bytes) -> Mask:
    table = parse(classes)
    assert isinstance(table, ClassTable)
    return ByTable(table)(data)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF"])
@pytest.mark.parametrize(("classes", "lookup"), [(BY_VALUE, GREYS), (BY_COLOUR, COLOURS)])
def test_exact(classes: str, lookup: np.ndarray, kind: str):
    found = read(classes, encoded(lookup[drawn()], kind))
    np.testing.assert_array_equal(found.ids, drawn())
    assert (found.note, found.instances) == ("", None)


def test_a_palette_by_its_colours_or_by_its_indices():
    image = Image.fromarray(drawn())
    image.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200, 9, 9, 9])  # index 0 is not black
    by_colour = "background=#c80000,a=#00c800,b=#0000c8,c=#090909"
    for classes in ("background=0,a=1,b=2,c=3", by_colour):
        np.testing.assert_array_equal(read(classes, encoded(image)).ids, drawn())


def test_values_of_16_bits_and_ranges():
    ids = drawn(classes=1).astype(np.uint16)
    objects = np.where(ids, np.arange(ids.shape[1], dtype=np.uint16) + 300, 0).astype(np.uint16)
    np.testing.assert_array_equal(read("background=0,object=1-65535", encoded(objects)).ids, ids)


def test_what_is_transparent_is_black_and_what_is_ignored_is_255():
    colours = np.dstack([COLOURS[drawn()], np.where(drawn() == 0, 0, 255).astype(np.uint8)])
    colours[drawn() == 0, :3] = 77
    found = read("background=#000000,a=#ff0000,b=#00ff00,ignore=#0000ff", encoded(colours)).ids
    np.testing.assert_array_equal(found, np.where(drawn() == 3, 255, drawn()))


RESIZED = {
    "twice": (2, Image.Resampling.BILINEAR),
    "half": (0.5, Image.Resampling.BOX),
    "odd": (1.37, Image.Resampling.LANCZOS),
}


@pytest.mark.parametrize("how", ["jpeg95", "jpeg75", *RESIZED])
@pytest.mark.parametrize(("classes", "lookup"), [(BY_VALUE, GREYS), (BY_COLOUR, COLOURS)])
def test_blurred_masks_have_no_class_where_there_was_none(classes: str, lookup: np.ndarray, how: str):
    """Between grey 0 and 170 an edge has grey 85, which is a class of its own elsewhere: it must not become one there.
    Classes may differ from those of the sharp mask within two pixels of an edge alone."""
    for seed in range(4):
        truth = drawn(seed)
        image = Image.fromarray(lookup[truth])
        if how.startswith("jpeg"):
            data = encoded(image, "JPEG", quality=int(how[4:]))
        else:
            factor, filtered = RESIZED[how]
            size = int(image.width * factor), int(image.height * factor)
            data = encoded(image.resize(size, filtered))
            truth = np.asarray(Image.fromarray(truth).resize(size, Image.Resampling.NEAREST))
        found = read(classes, data)
        assert how == "jpeg95" or "of the mask's pixels lay near a class's" in found.note
        known = found.ids != 255
        assert 1 - known.mean() <= 0.005
        around = [cv2.dilate((truth == own).astype(np.uint8), np.ones((5, 5), np.uint8)) for own in range(4)]
        assert np.choose(np.minimum(found.ids, 3), around)[known].mean() > 0.998
        assert (found.ids == truth)[known].mean() > 0.98


@pytest.mark.parametrize(
    ("classes", "pixels", "message"),
    [
        (
            "background=0,a=85,b=170",
            GREYS[drawn()],
            r"mask has value 255 \([\d.]+ % of its pixels\), which --classes lacks",
        ),
        ("background=0,a=1,b=2", drawn(), r"mask has value 3 \("),
        (
            BY_COLOUR.rpartition(",")[0],
            COLOURS[drawn()],
            r"mask has colour '#0000ff' \([\d.]+ % of its pixels\), which",
        ),
        ("background=0,a=80,b=170,c=255", GREYS[drawn()], r"mask has value 85 \("),
        (BY_VALUE, COLOURS[drawn()], "mask is in colour; give one grey value a class, or --classes with the colours"),
        (BY_COLOUR, drawn().astype(np.uint16) * 300, "has more than 8 bits, and --classes has colours"),
    ],
)
def test_labels_that_are_not_in_the_table(classes: str, pixels: np.ndarray, message: str):
    with pytest.raises(ValueError, match=message):
        read(classes, encoded(pixels))


def test_thin_lines_of_another_colour_are_labels():
    """As outlines drawn around areas are: never taken for smoothed edges."""
    ids = drawn(classes=1)
    edge = cv2.morphologyEx(ids, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
    with pytest.raises(ValueError, match=r"mask has colour '#ffffff' \("):
        read(BY_COLOUR, encoded(np.where(edge[..., None], np.uint8(255), COLOURS[ids])))


def test_too_much_is_moved():
    noise = np.random.default_rng(0).integers(0, 256, (160, 192)).astype(np.uint8)
    with pytest.raises(ValueError, match=r"mask has value .* or save masks as PNG|are not quite of a class's value"):
        read("background=0,a=255", encoded(noise, "JPEG", quality=90))
    squares = Image.fromarray(np.kron(np.indices((8, 8)).sum(0) % 2 * 255, np.ones((8, 8))).astype(np.uint8))
    with pytest.raises(ValueError, match=r"% of the mask's pixels are not quite of a class's value, at most 10 % are"):
        read("background=0,a=255", encoded(squares.resize((180, 180), Image.Resampling.BILINEAR)))


# Through `data prepare` ---------------------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "tree" / "Fotos").mkdir(parents=True)
    (tmp_path / "tree" / "Farben").mkdir()
    for number in range(8):
        photo = np.random.default_rng(number).integers(0, 256, (160, 192, 3)).astype(np.uint8)
        Image.fromarray(photo).save(tmp_path / "tree" / "Fotos" / f"{number}.jpg")
        Image.fromarray(COLOURS[drawn(number)]).save(tmp_path / "tree" / "Farben" / f"{number}.png")
    return tmp_path / "tree"


def test_prepare_takes_a_table(tree: Path, tmp_path: Path):
    table = tmp_path / "classes.csv"
    table.write_text("name,colour\nbackground,#000000\npolyp,#ff0000\ntool,#00ff00\nlumen,#0000ff\n")
    line = ("prepare", "pairs", "--source", tree, "--images", "Fotos/*", "--masks", "Farben/*", "--out", tmp_path / "s")
    run(*line, "--classes", table)
    manifest = Manifest.load(tmp_path / "s")
    reader = Reader(manifest)
    assert manifest.classes == ["background", "polyp", "tool", "lumen"]
    assert manifest.content.mask_rule == "colour #000000: 0, #ff0000: 1, #00ff00: 2, #0000ff: 3"
    for row in range(len(reader)):
        np.testing.assert_array_equal(reader.mask(row), drawn(row))
    table.write_text("name,colour\nbackground,#000000\npolyp,#ff0000\ntool,#00ff00\n")
    with pytest.raises(UserError, match="8 problems, nothing was written") as caught:
        run(*line, "--overwrite", "--classes", table)
    assert str(caught.value).count("mask has colour '#0000ff' (") == 3
    assert "... and 5 more like this, 8 in all" in str(caught.value)


def test_moved_pixels_are_said_by_the_dry_run_and_in_the_manifest(tree: Path, tmp_path: Path):
    for number in range(8):
        Image.fromarray(COLOURS[drawn(number)]).save(tree / "Farben" / f"{number}.jpg", quality=95)
        (tree / "Farben" / f"{number}.png").unlink()
    line = ("prepare", "pairs", "--source", tree, "--images", "Fotos/*", "--masks", "Farben/*", "--out", tmp_path / "s")
    for printed in (run(*line, "--classes", BY_COLOUR, "--dry-run"), run(*line, "--classes", BY_COLOUR)):
        assert "of 8 images: up to " in printed
        assert " % of the mask's pixels lay near a class's colour and went to that class" in printed


def test_words_of_the_table_are_those_of_the_files(tree: Path, tmp_path: Path):
    for number in range(8):
        (tree / "Farben" / f"{number}.png").unlink()
        for own, word in ((1, "herz"), (2, "lunge")):
            Image.fromarray((drawn(number) == own).astype(np.uint8) * 255).save(
                tree / "Farben" / f"{number}_{word}.png"
            )
    (tmp_path / "c.csv").write_text("name,file\nheart,herz\nlung,lunge\n")
    table = parse(str(tmp_path / "c.csv"))
    manifest = prepare("pairs", [tree], tmp_path / "s", images="Fotos/*", masks="Farben/*_*", classes=table)
    np.testing.assert_array_equal(Reader(manifest).mask(0), np.where(drawn() == 3, 0, drawn()))
    (tmp_path / "c.csv").write_text("name,file\nheart,coeur\nlung,poumon\n")
    with pytest.raises(UserError, match=r"no mask is called coeur, poumon by --masks .*; there is herz, lunge"):
        prepare(
            "pairs",
            [tree],
            tmp_path / "t",
            images="Fotos/*",
            masks="Farben/*_*",
            classes=parse(str(tmp_path / "c.csv")),
        )
