"""Captions stand around a picture and leave it as it is, however long their words are."""

from __future__ import annotations

import numpy as np

from rwkvctl.pictures.captions import Caption, broken, captioned, font, width_of

PICTURE = np.random.default_rng(0).integers(0, 255, (40, 200, 3), np.uint8)
ORANGE, BLUE = (230, 159, 0), (86, 180, 233)


def place_of(sheet: np.ndarray) -> int:
    """The row at which the picture begins."""
    return next(row for row in range(len(sheet)) if np.array_equal(sheet[row : row + 40], PICTURE))


def test_a_heading_stands_above_and_the_colours_below():
    caption = Caption("case 7, slice 3 of 9", ("image", "truth"), [(ORANGE, "liver: DSC 0.5"), (BLUE, "spleen")])
    sheet = captioned(PICTURE, caption)
    row = place_of(sheet)
    above, below = sheet[:row], sheet[row + 40 :]
    assert sheet.shape[1] == 200
    assert (above < 128).any()
    for colour in (ORANGE, BLUE):
        assert (below == colour).all(axis=2).sum() > 50


def test_long_names_are_broken_or_cut_and_none_is_lost():
    names = [f"class {number} with a long name" for number in range(6)]
    sheet = captioned(PICTURE, Caption("x" * 500, legend=[(ORANGE, name) for name in names]))
    swatches = (sheet[place_of(sheet) + 40 :] == ORANGE).all(axis=2)
    starts = np.flatnonzero(np.diff(swatches[:, 12].astype(int)) == 1)
    assert len(starts) == 6, "one below the other where they are as wide as the picture"
    for line in broken("one two three " + "y" * 90, 120):
        assert width_of(line) <= 120
    assert " ".join(broken("one\ntwo  three", 1000)) == "one two three"


def test_letters_of_other_languages_have_glyphs():
    missing = bytes(font().getmask("\U0010fffe"))
    assert all(bytes(font().getmask(letter)) != missing for letter in "äßéñΩЖ")
