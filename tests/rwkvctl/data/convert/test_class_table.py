"""`--classes`: names, `name=value`, and tables as CSV, JSON, YAML and CVAT's label map."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rwkvctl.base.errors import UserError
from rwkvctl.data.convert.class_table import ClassTable, parse

NAMES = ("background", "polyp", "tool")
GREY = ClassTable(NAMES, values=((0, 0, 0), (85, 85, 1), (170, 170, 2)))
COLOUR = ClassTable(NAMES, colours=(((0, 0, 0), 0), ((255, 0, 0), 1), ((0, 128, 255), 2)))

FILES = {
    "plain.csv": ("background,0\npolyp,85\ntool,170\n", GREY),
    "semicolons.csv": ("\ufeffName;Value\r\nbackground;0\r\npolyp;85\r\ntool;170\r\n", GREY),
    "value_first.csv": ("0,background\n85,polyp\n170,tool\n", GREY),
    "label_is_value.csv": ("label,name\n0,background\n85,polyp\n170,tool\n", GREY),
    "tabs.tsv": ("class\tpixel value\nbackground\t0\npolyp\t85\ntool\t170\n", GREY),
    "background_last.csv": ("tool,170\nbackground,0\npolyp,85\n", None),
    "rgb.csv": ("name,r,g,b\nbackground,0,0,0\npolyp,255,0,0\ntool,0,128,255\n", COLOUR),
    "no_headings_rgb.csv": ("background,0,0,0\npolyp,255,0,0\ntool,0,128,255\n", COLOUR),
    "hex.csv": ("background,#000000\npolyp,#FF0000\ntool,#0080ff\n", COLOUR),
    "bare_hex.csv": ("name,color\nbackground,000000\npolyp,ff0000\ntool,0080ff\n", COLOUR),
    "quoted.csv": ('name,rgb\nbackground,"0, 0, 0"\npolyp,"(255, 0, 0)"\ntool,rgb(0 128 255)\n', COLOUR),
    "names.json": (json.dumps({"background": 0, "polyp": 85, "tool": 170}), GREY),
    "values.json": (json.dumps({"0": "background", "85": "polyp", "170": "tool"}), GREY),
    "nnunet.json": (json.dumps({"labels": {"background": 0, "polyp": 85, "tool": 170}, "channel_names": {}}), GREY),
    "coco.json": (
        json.dumps({"categories": [{"id": v, "name": n} for n, v in zip(NAMES, (0, 85, 170), strict=True)]}),
        GREY,
    ),
    "triples.json": (json.dumps({"background": [0, 0, 0], "polyp": [255, 0, 0], "tool": [0, 128, 255]}), COLOUR),
    "objects.yaml": (
        "classes:\n  - {name: background, value: 0}\n  - {name: polyp, value: 85}\n  - {name: tool, value: 170}\n",
        GREY,
    ),
    "colours.yml": ("background: '#000000'\npolyp: '#ff0000'\ntool: [0, 128, 255]\n", COLOUR),
    "labelmap.txt": (
        "# label:color_rgb:parts:actions\nbackground:0,0,0::\npolyp:255,0,0::\ntool:0,128,255::\n",
        COLOUR,
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_files(name: str, tmp_path: Path):
    text, expected = FILES[name]
    (tmp_path / name).write_text(text)
    found = parse(str(tmp_path / name))
    if expected is None:  # the background is class 0, wherever it stands
        expected = ClassTable(("background", "tool", "polyp"), values=((170, 170, 1), (0, 0, 0), (85, 85, 2)))
    assert found == expected


def test_utf_16_of_a_spreadsheet(tmp_path: Path):
    (tmp_path / "a.csv").write_text("Klasse;Wert\nHintergrund;0\nGefäß;1\n", encoding="utf-16")
    assert parse(str(tmp_path / "a.csv")) == ClassTable(("Hintergrund", "Gefäß"), values=((0, 0, 0), (1, 1, 1)))


def test_inline():
    assert parse("background, polyp") == ["background", "polyp"]
    assert parse("background=0,polyp=85,tool=170") == GREY
    assert parse("background=#000000,polyp=#ff0000,tool=#0080ff") == COLOUR
    assert parse("background=0,nucleus=1-65535") == ClassTable(
        ("background", "nucleus"), values=((0, 0, 0), (1, 65535, 1))
    )


def test_several_values_of_one_class_and_what_is_ignored():
    found = parse("background=0,tumour=1,tumour=4,ignore=255")
    assert found == ClassTable(("background", "tumour"), values=((0, 0, 0), (1, 1, 1), (4, 4, 1), (255, 255, 255)))


def test_without_a_background_there_is_one_without_pixels():
    found = parse("sky=#8080ff,road=#804080")
    assert isinstance(found, ClassTable)
    assert found.names == ("background", "sky", "road")


def test_words_of_file_names(tmp_path: Path):
    (tmp_path / "c.csv").write_text("name,file\nheart,herz\nlung,lunge\n")
    expected = ClassTable(("background", "heart", "lung"), words=(("herz", 1), ("lunge", 2)))
    assert parse(str(tmp_path / "c.csv")) == expected


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "", "is empty; write a line a class"),
        ("a.csv", "name,value\nbackground,0\npolyp,85\ntool,85\n", "line 4: 85 is of 'tool' and of 'polyp'"),
        ("a.csv", "background,0-9\npolyp,5\n", "line 2: 5 is of 'polyp' and of 'background'"),
        (
            "a.csv",
            "background,#000000\npolyp,85\n",
            "line 1: has no value; give every class a value|line 2: has no col",
        ),
        ("a.csv", "name,value\nbackground,0\npolyp,red\n", "'red' is no value; give a whole number from 0 to 65535"),
        ("a.csv", "name,value\nbackground,0\n,1\n", "line 3: has no name of a class"),
        ("a.csv", "background\npolyp\n", "'background' has no value; write NAME,VALUE"),
        ("a.json", "{", "a.json: cannot be read"),
        ("a.json", "3", "is not a list of classes"),
        ("a.yaml", "a: [", "a.yaml: cannot be read"),
        ("a.yaml", "background: #000000\npolyp: #ff0000\n", "has no value"),
        ("a.csv", "\0\0", "is not a table of text"),
    ],
)
def test_what_is_wrong_with_a_table(name: str, text: str, message: str, tmp_path: Path):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        parse(str(tmp_path / name))
    assert str(caught.value).startswith(f"--classes {tmp_path / name}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nowhere/classes.csv", "cannot be read .No such file or directory.; give the path of the table"),
        ("background,polyp=1", "'background' is not NAME=VALUE"),
        ("background=0,polyp=0", "0 is of 'polyp' and of 'background'"),
    ],
)
def test_what_is_wrong_with_the_option(text: str, message: str):
    with pytest.raises(UserError, match=message):
        parse(text)
