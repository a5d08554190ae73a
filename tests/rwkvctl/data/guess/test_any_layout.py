"""Every layout of one's own images: synth -> `data doctor` -> the very line that it prints -> what the builder made."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
import pytest

from rwkvctl.data.convert import synth
from rwkvctl.data.convert.synth import pairs
from rwkvctl.data.store.manifest import Manifest
from rwkvctl.data.store.reader import Reader

from ...cli.test_data import run

N, SIZE = 8, 48
LAYOUTS = {
    "suffix": ["background", "foreground"],
    "annotators": ["background", "foreground"],
    "instances": ["background", "foreground"],
    "classes": ["background", "heart", "lung"],
    "parts": ["background", "foreground"],
    "grey": ["background", "class1", "class2", "class3"],
    "colour": ["background", "class1", "class2"],
    "palette": ["background", "cup", "disc"],
    "ids": ["background", "class1", "class2", "class3"],
    "objects": ["background", "object"],
    "jpegmasks": ["background", "class1", "class2"],
    "languages": ["background", "foreground"],
    "endings": ["background", "foreground"],
    "beside": ["background", "foreground"],
    "beginnings": ["background", "foreground"],
    "cases": ["background", "foreground"],
    "junk": ["background", "foreground"],
    "csv": ["background", "foreground"],
    "metadata": ["background", "foreground"],
}
"""By layout the classes that doctor's line makes."""
MADE_UP = ("grey", "colour", "ids", "jpegmasks")
"""Layouts whose classes nothing names."""


@pytest.mark.parametrize("form", LAYOUTS)
def test_from_a_folder_to_shards_by_the_line_that_doctor_prints(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "my images"
    truth = getattr(pairs, f"write_{form}")(folder, N, SIZE, 0)
    printed = run("doctor", folder)
    print(printed)
    assert sum(line.startswith("  pair  ") for line in printed.splitlines()) == 3
    assert ("call the classes by their names" in printed) == (form in MADE_UP)
    (line,) = (text for text in printed.splitlines() if text.startswith("  prepare  "))
    words = shlex.split(line)[1:]
    assert words[:4] == ["rwkvctl", "data", "prepare", "pairs"]
    run(*words[2:], "--out", tmp_path / "set")
    manifest = Manifest.load(tmp_path / "set")
    assert manifest.classes == LAYOUTS[form]
    assert manifest.content.counts == {"samples": len(truth), "labeled": len(truth)}
    reader = Reader(manifest)
    for row in range(len(reader)):
        path = str(reader.meta(row)["orig_path"])
        (expected,) = (ids for name, ids in truth.items() if name.endswith(path))
        np.testing.assert_array_equal(reader.mask(row), expected, err_msg=path)


def test_every_layout_is_in_the_table():
    assert set(LAYOUTS) == {form for form in synth.FORMS["pairs"] if not form.startswith("volume_")}
