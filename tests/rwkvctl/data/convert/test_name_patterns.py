from __future__ import annotations

import unicodedata

import pytest

from rwkvctl.base.errors import UserError
from rwkvctl.data.convert.name_patterns import parse
from rwkvctl.data.convert.part_folders import by_folder, by_value, part_of


@pytest.mark.parametrize(
    ("pattern", "path", "ways"),
    [
        ("Bilder/*.tif", "Bilder/7.TIF", [("7",)]),
        ("Bilder/*.tif", "Bilder/a/7.tif", []),
        ("**/*.png", "a/b/7.png", [("a/b", "7")]),
        ("**/*.png", "7.png", [("", "7")]),
        ("images/**", "images/p1/7.jpeg", [("p1", "7")]),
        ("images/*", "images/7.v2.png", [("7.v2",)]),
        ("images/*", "images/7.txt", []),
        ("images/*.*", "images/7.bmp", [("7",)]),
        ("*.{png,tif}", "7.tif", [("7",)]),
        ("*_*.png", "1_2_3.png", [("1_2", "3"), ("1", "2_3")]),
        ("{id}/masks/{n}.png", "7/masks/0.png", [("7", "0")]),
        ("{id}/{id}.png", "7/7.png", [("7", "7")]),
        ("{id}/{id}.png", "7/8.png", []),
        ("{train,test}_set/*.png", "TEST_set/1.png", [("TEST", "1")]),
        ("img?[LR].png", "img1L.png", [("1", "L")]),
        ("img[!0-8].png", "img9.png", [("9",)]),
        ("a (*)+.png", "a (7)+.png", [("7",)]),
        ("größe*.png", unicodedata.normalize("NFD", "GRÖSSE") + "1.png", []),
        ("grö*.png", unicodedata.normalize("NFD", "GRÖ1.png"), [("1",)]),
    ],
)
def test_what_wildcards_match(pattern: str, path: str, ways: list[tuple[str, ...]]):
    assert parse("--images", pattern).ways(path) == ways


@pytest.mark.parametrize(
    ("pattern", "message"),
    [("a/1.png", "has no \\*.*'a/\\*.png'"), ("a/{id.png", "{ is not closed"), ("{}.png", "has no name")],
)
def test_what_is_no_pattern(pattern: str, message: str):
    with pytest.raises(UserError, match=message):
        parse("--masks", pattern)


def test_parts_under_many_spellings():
    said = ["Training", "train_images", "images-TEST", "Validation Set", "trainval", "patients", "train/test"]
    assert [part_of(text) for text in said] == ["train", "train", "test", "val", "train", None, None]
    paths = {"a": "data/Train/x/1.png", "b": "data/dev/x/1.png"}
    assert by_folder(paths) == ({"a": "train", "b": "val"}, 1)
    with pytest.raises(UserError, match=r"no folder .* tells train, val, test \(found: images\)"):
        by_folder({"a": "images/1.png"})
    with pytest.raises(UserError, match=r"is 'Übung', which is none of train"):
        by_value({"a": "Übung"})
