from __future__ import annotations

import io

import imagehash
import numpy as np
import pytest
from PIL import Image

from rwkvctl.data.images import looks
from rwkvctl.data.images.files import check_image, encode_png, grey_copy

RNG = np.random.default_rng(0)
COARSE = Image.fromarray(RNG.integers(0, 256, (9, 12, 3), dtype=np.uint8))
RGB = np.asarray(COARSE.resize((640, 400), Image.Resampling.BICUBIC))


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


FILES = {
    "colour JPEG": encoded(Image.fromarray(RGB), "JPEG"),
    "4:4:4 JPEG": encoded(Image.fromarray(RGB), "JPEG", subsampling=0),
    "grey JPEG": encoded(Image.fromarray(RGB).convert("L"), "JPEG"),
    "CMYK JPEG": encoded(Image.fromarray(RGB).convert("CMYK"), "JPEG"),
    "small JPEG": encoded(Image.fromarray(RGB[:40, :50]), "JPEG"),
    "PNG": encoded(Image.fromarray(RGB), "PNG"),
    "palette PNG": encoded(Image.fromarray(RGB).quantize(64), "PNG"),
    "BMP": encoded(Image.fromarray(RGB), "BMP"),
}


@pytest.mark.parametrize("data", FILES.values(), ids=FILES.keys())
def test_hash_is_that_of_the_library_on_what_pillow_decodes(data: bytes):
    image = Image.open(io.BytesIO(data))
    image.draft("L", (128, 128))
    checked = check_image(data)
    expected = str(imagehash.phash(image))
    assert looks.perceptual_hash(checked.grey) == expected
    assert looks.perceptual_hash(grey_copy(checked.data)) == expected


def test_few_levels():
    dark, few = np.zeros((20, 20, 3), np.uint8), RGB % 31
    for pixels, expected in ((dark, True), (few, True), (RGB, False)):
        assert looks.has_few_levels(grey_copy(encode_png(pixels))) == expected
        assert looks.has_few_levels(check_image(encoded(Image.fromarray(pixels), "TIFF")).grey) == expected


def test_counts_of_values():
    for values in (
        RGB[..., 0],
        RGB.astype(np.uint16) * 3,
        RGB[::2, ::3, 1],
        RGB[:0],
        np.full((2, 3, 4), 255, np.uint8),
    ):
        assert looks.counts_of(values).tolist() == np.bincount(values.ravel(), minlength=256).tolist()
