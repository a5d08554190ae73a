from __future__ import annotations

import io

import cv2
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


@pytest.mark.parametrize("kind", ["BMP", "TIFF", "PPM"])
def test_other_kinds_become_png_without_loss(kind):
    checked = image_files.check_image(encoded(Image.fromarray(RGB), kind))
    assert checked.kind == "png"
    assert "to png" in checked.note
    np.testing.assert_array_equal(image_files.decode_rgb(checked.data), RGB)


@pytest.mark.parametrize("mode", ["L", "1"])
def test_pgm_and_pbm(mode):
    source = Image.fromarray(RGB).convert(mode)
    checked = image_files.check_image(encoded(source, "PPM"))
    np.testing.assert_array_equal(image_files.decode_rgb(checked.data), np.asarray(source.convert("RGB")))


@pytest.mark.parametrize("extension", [".ppm", ".pgm"])
def test_ppm_of_16_bits_is_refused(extension: str):
    pixels = RGB.astype(np.uint16) * 257
    data = cv2.imencode(extension, pixels if extension == ".ppm" else pixels[..., 0])[1].tobytes()
    with pytest.raises(ValueError, match="a PPM or PGM of more than 8 bits; save it as PNG or TIFF"):
        image_files.check_image(data)


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


@pytest.mark.parametrize("kind", ["TIFF", "GIF", "PNG"])
def test_an_image_of_several_pages_is_refused_with_their_count(kind):
    pages = [Image.fromarray(page) for page in RNG.integers(0, 256, (3, 8, 8), dtype=np.uint8)]
    data = encoded(pages[0], kind, save_all=True, append_images=pages[1:])
    with pytest.raises(ValueError, match=r"has 3 (pages|frames), and an image is one; save each as a file of its own"):
        image_files.check_image(data)


def test_pages_that_opencv_wrote(tmp_path):
    cv2.imwritemulti(str(tmp_path / "a.tif"), list(RNG.random((4, 8, 8, 3), dtype=np.float32)))
    with pytest.raises(ValueError, match="has 4 pages"):
        image_files.check_image((tmp_path / "a.tif").read_bytes())


def test_thumbnails_are_no_pages():
    first, small = Image.fromarray(RGB), Image.fromarray(RGB[::4, ::4].copy())
    small.encoderinfo = {"tiffinfo": {254: 1}}
    tiff = encoded(first, "TIFF", save_all=True, append_images=[small])
    assert Image.open(io.BytesIO(tiff)).n_frames == 2
    camera = encoded(first, "MPO", save_all=True, append_images=[small])
    for data in (tiff, camera):
        checked = image_files.check_image(data)
        assert (checked.height, checked.width) == RGB.shape[:2]


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


def test_mask_png_is_the_same_twice_and_read_back():
    assert image_files.encode_png(IDS) == image_files.encode_png(IDS)
    np.testing.assert_array_equal(image_files.decode_ids(image_files.encode_png(IDS)), IDS)
