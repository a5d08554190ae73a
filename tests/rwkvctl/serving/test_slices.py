"""What a page gets to draw: photographs, slices in [0, 1], and channels in deviations from a mean."""

from __future__ import annotations

import json

import numpy as np
import pytest

from rwkvctl.serving import slices

RNG = np.random.default_rng(0)
MASK = RNG.integers(0, 3, (2, 5, 6)).astype(np.uint8)


@pytest.mark.parametrize(("image", "mask", "channels"), [
    (RNG.integers(0, 256, (5, 6, 3), np.uint8), MASK[0], 3),
    (RNG.random((5, 6), np.float32), MASK[0], 1),
    (RNG.random((2, 5, 6), np.float32), MASK, 1),
    (RNG.random((2, 5, 6, 4), np.float32), MASK, 1),
    (RNG.normal(0, 2, (2, 5, 6, 2)).astype(np.float32), MASK, 1),
    (RNG.normal(0, 2, (5, 6, 2)).astype(np.float32), MASK[0], 1),
], ids=["photo", "slice", "volume", "channels", "deviations", "image"])  # fmt: skip
def test_what_is_sent(image: np.ndarray, mask: np.ndarray, channels: int):
    line, _, content = slices.encode(image, mask, {"note": ""}).partition(b"\n")
    head = json.loads(line)
    depth = len(mask) if mask.ndim == 3 else 1
    assert (head["depth"], head["height"], head["width"], head["channels"]) == (depth, 5, 6, channels)
    sent = np.frombuffer(content, np.uint8)
    assert len(sent) == depth * 30 * (channels + 1)
    np.testing.assert_array_equal(sent[-depth * 30 :], mask.ravel())
    shown = image if image.ndim == mask.ndim or channels == 3 else image[..., 0]
    if shown.min() < 0:
        shown = (shown - shown.min()) / (shown.max() - shown.min())
    expected = shown if channels == 3 else np.rint(shown * 255)
    np.testing.assert_allclose(sent[: -depth * 30], expected.ravel(), atol=1)
