from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from rwkvctl.data.images import files as image_files

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)
SMOOTH = np.broadcast_to(np.linspace(0, 255, 32, dtype=np.uint8)[:, None, None], (32, 32, 3)).copy()


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def exif(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags.tobytes()


def test_jpeg_and_png_keep_their_bytes():
    for kind, extension in (("JPEG", "jpg"), ("PNG", "png")):
        data = encoded(Image.fromarray(RGB), kind)
        checked = image_files.check_image(data)
        assert (checked.data, checked.kind, checked.height, checked.width) == (data, extension, 20, 30)
        assert checked.note == ""


@pytest.mark.parametrize("kind", ["BMP", "TIFF"])
def test_other_kinds_become_png_without_loss(kind):
    checked = image_files.check_image(encoded(Image.fromarray(RGB), kind))
    assert checked.kind == "png"
    assert "to png" in checked.note
    np.testing.assert_array_equal(image_files.decode_rgb(checked.data), RGB)


@pytest.mark.parametrize("mode", ["L", "P", "1", "RGBA", "LA"])
def test_png_of_any_mode_is_read_as_rgb(mode):
    source = Image.fromarray(RGB).convert(mode)
    expected = np.asarray(source.convert("RGB"))
    np.testing.assert_array_equal(image_files.decode_rgb(encoded(source, "PNG")), expected)


def test_grey_jpeg_has_three_equal_channels():
    pixels = image_files.decode_rgb(encoded(Image.fromarray(SMOOTH).convert("L"), "JPEG"))
    assert pixels.shape == (32, 32, 3)
    assert (pixels[..., 0] == pixels[..., 2]).all()


def test_cmyk_jpeg_has_pillows_colours():
    data = encoded(Image.fromarray(SMOOTH).convert("CMYK"), "JPEG", quality=95)
    assert image_files.check_image(data).mode == "CMYK"
    np.testing.assert_allclose(image_files.decode_rgb(data).astype(int), SMOOTH.astype(int), atol=12)


def test_exif_rotation_is_applied_once():
    data = encoded(Image.fromarray(RGB), "PNG", exif=exif(6))
    checked = image_files.check_image(data)
    assert (checked.height, checked.width) == (30, 20)
    assert "EXIF" in checked.note
    np.testing.assert_array_equal(image_files.decode_rgb(checked.data), np.rot90(RGB, -1))


def test_sixteen_bit_is_scaled():
    deep = (np.arange(600, dtype=np.uint16) * 100).reshape(20, 30)
    checked = image_files.check_image(encoded(Image.fromarray(deep), "PNG"))
    assert "8 bits" in checked.note
    np.testing.assert_array_equal(image_files.decode_rgb(checked.data)[..., 0], deep // 257)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_truncated_and_alien_files(kind):
    data = encoded(Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)), kind)
    with pytest.raises(ValueError, match="corrupt"):
        image_files.check_image(data[: len(data) // 2])
    with pytest.raises(ValueError, match="not an image"):
        image_files.check_image(b"hello" + data)
    with pytest.raises(ValueError, match="empty"):
        image_files.check_image(b"")


def test_a_bomb_is_refused_before_it_is_decoded():
    data = bytearray(encoded(Image.fromarray(RGB), "PNG"))
    data[16:24] = (60_000).to_bytes(4, "big") * 2
    with pytest.raises(ValueError, match="limit"):
        image_files.decode_rgb(bytes(data))
    with pytest.raises(ValueError, match=r"limit|corrupt"):
        image_files.check_image(bytes(data))


IDS = np.array([[0, 1], [2, 3]], np.uint8)


def test_palette_masks_give_indices_not_colours():
    palette = Image.fromarray(IDS, "L").convert("P")
    palette.putdata(IDS.ravel().tolist())
    palette.putpalette([0, 0, 0, 200, 0, 0, 0, 200, 0, 0, 0, 200] + [0] * 756)
    np.testing.assert_array_equal(image_files.read_mask(encoded(palette, "PNG")).values, IDS)


def test_masks_of_other_modes():
    one = image_files.read_mask(encoded(Image.fromarray(IDS > 1).convert("1"), "PNG"))
    assert (one.mode, one.values.tolist()) == ("1", [[0, 0], [1, 1]])
    grey = np.repeat(IDS[..., None], 3, -1)
    np.testing.assert_array_equal(image_files.read_mask(encoded(Image.fromarray(grey), "PNG")).values, IDS)
    alpha = np.dstack([grey, np.full((2, 2), 255, np.uint8)])
    np.testing.assert_array_equal(image_files.read_mask(encoded(Image.fromarray(alpha), "PNG")).values, IDS)
    deep = IDS.astype(np.uint16) * 1000
    read = image_files.read_mask(encoded(Image.fromarray(deep), "PNG"))
    assert read.values.dtype == np.uint16
    np.testing.assert_array_equal(read.values, deep)


def test_masks_that_are_not_clear():
    coloured = np.zeros((2, 2, 3), np.uint8)
    coloured[0, 0] = (0, 0, 9)
    with pytest.raises(ValueError, match="colour"):
        image_files.read_mask(encoded(Image.fromarray(coloured), "PNG"))
    with pytest.raises(ValueError, match="transparent"):
        image_files.read_mask(encoded(Image.fromarray(np.zeros((2, 2, 4), np.uint8)), "PNG"))


def test_mask_png_is_the_same_twice_and_read_back():
    assert image_files.encode_png(IDS) == image_files.encode_png(IDS)
    np.testing.assert_array_equal(image_files.decode_ids(image_files.encode_png(IDS)), IDS)
