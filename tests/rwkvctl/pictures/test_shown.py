"""What is shown of a case is bounded, and says what it leaves out."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from rwkvctl.pictures import shown
from rwkvctl.pictures.palette import palette


def test_a_slice_is_the_one_with_most_foreground_and_not_larger_than_it_may_be():
    image = np.random.default_rng(0).random((4, 1000, 500)).astype(np.float32)
    truth, pred = np.zeros(image.shape, np.uint8), np.zeros(image.shape, np.uint8)
    truth[1, :100], truth[3], pred[2, :300] = 1, 255, 2
    found = shown.slice_of("a", image, truth, pred)
    assert found.place == "slice 3 of 4"
    assert found.image.shape == (768, 384, 3)
    assert found.pred.shape == found.truth.shape == (768, 384)
    assert set(np.unique(found.pred)) == {0, 2}


@pytest.mark.parametrize(
    ("shape", "zs", "left_out"),
    [
        ((5, 30, 20), 5, ""),
        ((200, 30, 20), 67, "67 of 200 slices, evenly spread"),
        ((3, 640, 320), 3, "slices of 320x640 shown as 160x320 pixels"),
    ],
)
def test_a_stack_is_bounded_and_keeps_its_labels(shape: tuple[int, ...], zs: int, left_out: str):
    image = np.linspace(-500, 800, int(np.prod(shape)), dtype=np.float32).reshape(shape)
    labels = (image > 0).astype(np.uint8)
    found = shown.stack_of("a", image, labels, 2 * labels)
    assert (len(found.zs), found.left_out) == (zs, left_out)
    assert found.images.dtype == np.uint8
    assert (found.images.min(), found.images.max()) == (0, 255)
    assert np.array_equal(2 * found.truth, found.pred)
    assert found.shape == shape


def test_labels_are_transparent_where_there_is_nothing():
    labels = np.zeros((20, 20), np.uint8)
    labels[5:15, 5:15], labels[0] = 3, 255
    picture = np.asarray(Image.open(io.BytesIO(shown.transparent(labels))).convert("RGBA"))
    assert (picture[10, 10] == [*palette()[3], 255]).all()
    assert picture[2, 2, 3] == picture[0, 0, 3] == 0
    lines = np.asarray(Image.open(io.BytesIO(shown.outlines(labels))).convert("RGBA"))
    assert lines.shape == (260, 260, 4), "enlarged, so that lines are thin"
    assert (lines[5 * 13, 10 * 13] == [*palette()[3], 255]).all()
    assert lines[10 * 13, 10 * 13, 3] == 0
