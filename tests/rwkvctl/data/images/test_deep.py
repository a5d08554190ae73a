"""More than 8 bits: nothing is lost, or turned black, without a word."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from rwkvctl.base.errors import UserError
from rwkvctl.data.images import deep
from rwkvctl.data.images import files as image_files

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 1500, (20, 30), dtype=np.uint16)
COLOUR = RNG.integers(0, 4096, (20, 30, 3), dtype=np.uint16)


def by_pillow(pixels: np.ndarray, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def by_opencv(pixels: np.ndarray, ending: str) -> bytes:
    return cv2.imencode(ending, pixels[..., ::-1] if pixels.ndim == 3 else pixels)[1].tobytes()


FILES = {
    "grey PNG": (by_pillow(GREY, "PNG"), GREY),
    "grey TIFF": (by_pillow(GREY, "TIFF"), GREY),
    "colour PNG": (by_opencv(COLOUR, ".png"), COLOUR),
    "colour PNG with alpha": (
        cv2.imencode(".png", np.dstack([COLOUR[..., ::-1], np.full((20, 30), 65535, np.uint16)]))[1].tobytes(),
        COLOUR,
    ),
    "colour TIFF": (by_opencv(COLOUR, ".tiff"), COLOUR),
    "grey in three channels": (by_opencv(np.repeat(GREY[..., None], 3, 2), ".png"), GREY),
    "float TIFF": (by_pillow((GREY / 1500).astype(np.float32), "TIFF"), (GREY / 1500).astype(np.float32)),
    "float colour TIFF": (by_opencv((COLOUR / 4095).astype(np.float32), ".tiff"), (COLOUR / 4095).astype(np.float32)),
    "32-bit TIFF with negative values": (by_pillow(GREY.astype(np.int32) - 700, "TIFF"), GREY.astype(np.int32) - 700),
}


@pytest.mark.parametrize("name", FILES)
def test_stored_values_are_scaled_by_the_range_that_is_given(name: str):
    data, stored = FILES[name]
    assert deep.may_be_deep(data[:32])
    low, high = float(stored.min()), float(stored.max())
    with pytest.raises(image_files.NoRange, match=r"has (16-bit|float) values .*, where 8-bit ones were expected"):
        image_files.check_image(data)
    checked = image_files.check_image(data, window=(low, high))
    assert checked.note == f"scaled from {low:g}..{high:g} to 8 bits"
    expected = np.rint((stored.astype(np.float64) - low) / (high - low) * 255)
    with Image.open(io.BytesIO(checked.data)) as image:
        found = np.asarray(image)
    assert found.shape == stored.shape
    assert np.abs(found - expected).max() <= 1, "a half may be rounded either way"


def test_what_lies_outside_a_range_is_clipped_and_noted():
    checked = image_files.check_image(FILES["grey PNG"][0], window=(100, 1000))
    assert checked.note == "scaled from 100..1000 to 8 bits; values outside that range were clipped"
    pixels = image_files.decode_rgb(checked.data)[..., 0]
    assert (pixels[GREY <= 100] == 0).all()
    assert (pixels[GREY >= 1000] == 255).all()


def test_widened_bytes_come_back_exactly():
    grey = RNG.integers(0, 256, (20, 30)).astype(np.uint16)
    assert deep.is_widened(grey * 257)
    assert not deep.is_widened(GREY)
    np.testing.assert_array_equal(deep.to_8bit(grey * 257, *deep.BYTES_IN_WORDS), grey)


def test_values_of_no_clear_meaning():
    nan = np.full((4, 4), np.nan, np.float32)
    with pytest.raises(ValueError, match="NaN or infinite"):
        image_files.check_image(by_pillow(nan, "TIFF"), window=(0, 1))
    buffer = io.BytesIO()
    Image.fromarray(GREY).save(buffer, "TIFF", tiffinfo={262: 0})
    with pytest.raises(ValueError, match="0 is white"):
        image_files.check_image(buffer.getvalue(), window=(0, 1500))


@pytest.mark.parametrize("text", ["1", "4095,0", "5,5", "a,b", "0,inf", "nan,1", "1,2,3"])
def test_what_is_no_range(text: str):
    with pytest.raises(UserError, match=f"^--range {text}: give two numbers, the smaller first"):
        deep.parse_range(text)
