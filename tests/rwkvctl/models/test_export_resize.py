"""OpenCV's resize, in operators that can be exported, gives OpenCV's pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rwkvctl.data.images import files as image_files
from rwkvctl.models.export_resize import resize_of, resized

SIZES = {
    "same": (64, 64, 64, 64),
    "grows": (50, 60, 250, 233),
    "grows from a pixel": (1, 1, 32, 32),
    "of one area": (128, 32, 64, 64),
    "by two": (512, 512, 256, 256),
    "by two and three": (768, 512, 256, 256),
    "by four": (256, 256, 64, 64),
    "grows and shrinks": (1000, 200, 256, 256),
    "shrinks and grows": (77, 900, 224, 224),
    "at borders of pixels": (143, 77, 192, 33),
}
AVERAGES = {"shrinks": (600, 500, 256, 256), "shrinks a little": (346, 301, 335, 215), "ties": (324, 296, 216, 260)}


def both(sizes: tuple[int, int, int, int], image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    height, width, *size = sizes
    planes = image if image.ndim == 3 else image[..., None]
    resize = resize_of(height, width, (size[0], size[1]))
    ours = resized(torch.from_numpy(planes).float(), resize, is_bytes=image.dtype == np.uint8).permute(1, 2, 0).numpy()
    return ours, image_files.resize(image, (size[0], size[1])).reshape(ours.shape)


@pytest.mark.parametrize("name", [*SIZES, *AVERAGES])
def test_bytes_and_floats(name: str):
    sizes = (SIZES | AVERAGES)[name]
    rng = np.random.default_rng(0)
    ours, theirs = both(sizes, rng.integers(0, 256, (*sizes[:2], 3), dtype=np.uint8))
    different = np.abs(ours - theirs)
    assert different.max() <= (1 if name in AVERAGES else 0)
    assert (different > 0).mean() <= 1e-3
    ours, theirs = both(sizes, rng.random(sizes[:2], dtype=np.float32))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=3e-5)
