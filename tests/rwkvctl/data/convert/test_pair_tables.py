"""Tables that pair images and masks, and say what they are for and whose they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rwkvctl.base.errors import UserError
from rwkvctl.data.convert import synth
from rwkvctl.data.convert.prepare import prepare
from rwkvctl.data.store.manifest import Manifest

from ...cli.test_data import run


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """`a/N.png` with `b/N.png`, N from 1 to 8."""
    tree = synth.write("folder", tmp_path / "tree", n=8, size=32)
    (tree / "images").rename(tree / "a")
    (tree / "masks").rename(tree / "b")
    return tree


def rows(head: str, line: str, count: int = 8) -> str:
    return "\n".join([head, *(line.replace("%", str(n)) for n in range(1, count + 1))]) + "\n"


def made(tree: Path, text: str, **options: Any) -> Manifest:
    (tree / "list.csv").write_text(text, encoding="utf-8")
    return prepare("pairs", [tree], tree.parent / "set", csv="list.csv", workers=1, overwrite=True, **options)


def refused(tree: Path, text: str, match: str, **options: Any) -> str:
    with pytest.raises(UserError, match=match) as caught:
        made(tree, text, **options)
    return str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        rows("image,mask", "a/%.jpg,b/%.png"),
        rows("mask,image", "b/%.png,a/%.jpg"),
        rows("Bild;Maske", "C:\\Daten\\a\\%.JPG;C:\\Daten\\b\\%.PNG"),
        rows("id\timg_path\tlabel_path", "%\t/home/me/a/%.jpg\t/home/me/b/%.png"),
        rows("one,other", "a/%.jpg,b/%.png"),
        rows("image,mask", "a/%,b/%"),
        rows("nr,image,mask,age", "%,./a/%.jpg,./b/%.png,7%"),
    ],
)
def test_columns_and_files_are_found(text: str, tree: Path):
    manifest = made(tree, text)
    assert manifest.content.counts == {"samples": 8, "labeled": 8}
    assert [key.decode() for key in manifest.index.keys][:2] == ["set_0001", "set_0002"]
    assert any(" image is column " in note for note in manifest.content.warnings)


def test_columns_by_name(tree: Path):
    text = rows("x,y,z", "a/%.jpg,b/%.png,train").replace("8.png,train", "8.png,test")
    manifest = made(tree, text, images="x", masks="Y", split_from="z")
    assert manifest.splits["table"].counts == {"train": 6, "val": 1, "test": 1}
    refused(
        tree,
        text,
        "has no column tells|--split-from w: give folders, lists, a column of x, y, z, a table",
        split_from="w",
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"images": "nocolumn", "masks": "m"},
            "--images nocolumn: is no column of --csv list.csv and no pattern; there is",
        ),
        (
            {"images": "x", "masks": "m"},
            "--masks m: is no column of --csv list.csv and no pattern; there is x, y, z; name",
        ),
        ({"masks": "m"}, "--masks m: is no column of --csv list.csv"),
    ],
)
def test_a_column_that_is_not_there(options: dict[str, str], said: str, tree: Path):
    refused(tree, rows("x,y,z", "a/%.jpg,b/%.png,train"), said, **options)


def test_parts_and_patients_of_columns(tree: Path):
    parts = ["train"] * 4 + ["Validation"] * 2 + ["TEST"] * 2
    lines = [f"a/{n}.jpg,b/{n}.png,{part},p{(n + 1) // 2}" for n, part in enumerate(parts, 1)]
    manifest = made(tree, "\n".join(["image,mask,split,patient_id", *lines]))
    assert list(manifest.splits) == ["table"]
    assert manifest.splits["table"].counts == {"train": 4, "val": 2, "test": 2}
    assert manifest.splits["table"].leak_groups_shared == 0
    assert any("4 groups of up to 2 images by column patient_id" in note for note in manifest.content.warnings)
    torn = "\n".join(["image,mask,split,patient_id", *lines]).replace("TEST,p4", "TEST,p1")
    leak = made(tree, torn).content.warnings[0]
    assert leak.startswith("LEAK: 1 of 3 groups (patients) have images in several parts: p1 in test and train; scores")


def test_parts_that_are_none(tree: Path):
    refused(
        tree,
        rows("image,mask,split", "a/%.jpg,b/%.png,train").replace("1.png,train", "1.png,odd"),
        "'odd', which is none",
    )
    empty = rows("image,mask,split", "a/%.jpg,b/%.png,train").replace("1.png,train", "1.png,")
    refused(tree, empty, "column split: is empty for 1 images, for example set_0001")
    refused(tree, rows("image,mask,split", "a/%.jpg,b/%.png,test"), "column split is nowhere train, but test")
    numbered = made(tree, rows("image,mask,fold", "a/%.jpg,b/%.png,%"))
    assert any("column fold does not tell train, val and test" in note for note in numbered.content.warnings)


def test_rows_that_are_wrong(tree: Path):
    text = rows("image,mask", "a/%.jpg,b/%.png") + "a/1.jpg,b/1.png\na/99.jpg,b/1.png\na/2.jpg,\na/3.jpg,a/3.jpg\n"
    said = refused(tree, text, "4 problems of 4 kinds")
    for line in (
        "row 10: is row 2 again (a/1.jpg)",
        "row 11: its image a/99.jpg is not in the source",
        "row 12: has no mask; add it",
        "row 13: image and mask are both a/3.jpg",
    ):
        assert f"--csv list.csv: {line}" in said
    manifest = made(tree, text, allow_partial=True)
    assert [own.id for own in manifest.content.excluded] == ["row 10", "row 11", "row 12", "row 13"]


def test_a_name_that_is_in_two_folders(tree: Path):
    (tree / "c").mkdir()
    (tree / "c" / "1.jpg").write_bytes((tree / "a" / "1.jpg").read_bytes())
    refused(tree, rows("image,mask", "%.jpg,b/%.png"), "row 2: its image 1.jpg may be a/1.jpg and c/1.jpg; write more")


def test_a_table_beside_patterns(tree: Path):
    text = rows("image_id,subject,subset", "%,s%,train").replace("8,s8,train", "8,s8,test")
    manifest = made(tree, text, images="a/*", masks="b/*")
    assert manifest.splits["table"].counts == {"train": 6, "val": 1, "test": 1}
    short = rows("image_id,subset", "%,train", 6) + "99,test\n"
    refused(tree, short, r"a/7.jpg: has no row in --csv list.csv", images="a/*", masks="b/*")
    partial = made(tree, short, images="a/*", masks="b/*", allow_partial=True)
    assert partial.content.counts["samples"] == 6
    assert "1 rows of --csv list.csv are of no image: 99" in partial.content.warnings


def test_split_from_a_table_or_an_expression(tree: Path, tmp_path: Path):
    (tmp_path / "parts.csv").write_text(rows("file,split", "%.jpg,train").replace("8.jpg,train", "8.jpg,test"))
    options: dict[str, Any] = {"images": "a/*", "masks": "b/*", "overwrite": True}
    table = prepare("pairs", [tree], tmp_path / "set", split_from=str(tmp_path / "parts.csv"), **options)
    assert table.splits["table"].counts == {"train": 6, "val": 1, "test": 1}
    for side in ("a", "b"):
        for path in (tree / side).iterdir():
            path.rename(path.with_stem(f"{path.stem}-{'test' if path.stem in '78' else 'train'}"))
    found = prepare("pairs", [tree], tmp_path / "set", split_from="-(train|test)$", **options)
    assert found.splits["folders"].counts == {"train": 5, "val": 1, "test": 2}
    with pytest.raises(UserError, match="does not match 8 images, for example a/1-train"):
        prepare("pairs", [tree], tmp_path / "set", split_from="_(train|test)$", **options)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,mask\n", "has no rows below its headings"),
        ("name,age\nx,1\ny,2\n", "no column has names of images in .*; there is name, age"),
        (rows("image,age", "a/%.jpg,7"), "no column has names of masks in .*; give --images and --masks, patterns"),
    ],
)
def test_tables_of_no_use(text: str, message: str, tree: Path):
    refused(tree, text, message)


def test_a_table_that_is_not_there(tree: Path):
    with pytest.raises(UserError, match=r"--csv nowhere.csv: does not exist, here or in .*; give the path"):
        prepare("pairs", [tree], tree.parent / "set", csv="nowhere.csv")


def test_doctor_prefers_the_table_to_names(tree: Path):
    (tree / "list.csv").write_text(rows("image,mask,split", "a/%.jpg,b/%.png,train"))
    printed = run("doctor", tree)
    assert f"--csv {tree / 'list.csv'}" in printed
    assert "form table: 8 samples" in printed
