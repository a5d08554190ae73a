"""Image files: which kind they are, their size, their pixels.

Kinds are told by magic bytes, never by the file's extension (ImageNet holds a PNG that is called .JPEG).
Decoding takes simplejpeg for JPEG and OpenCV for PNG; Pillow for what these two do not do faithfully.
"""

from __future__ import annotations

import io
import re
import struct
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from rwkvctl.data.images import deep

Kind = Literal["jpg", "png", "bmp", "tif", "gif", "ppm"]
Pixels = NDArray[np.uint8]
Size = tuple[int, int]

MAX_PIXELS = 1 << 27
"""Larger images are refused before any memory is taken for them (134 million pixels)."""

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".pbm"})

_MAGIC: tuple[tuple[bytes, Kind], ...] = (
    (b"\xff\xd8\xff", "jpg"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"BM", "bmp"),
    (b"II*\0", "tif"),
    (b"MM\0*", "tif"),
    (b"GIF8", "gif"),
    (b"P4", "ppm"),
    (b"P5", "ppm"),
    (b"P6", "ppm"),
)
_DEEP_PPM = re.compile(rb"P[56](?:\s+(?:#[^\n]*\n\s*)*\d+){2}\s+(?:#[^\n]*\n\s*)*(?!(?:1?\d?\d|2[0-4]\d|25[0-5])\s)\d")
"""A header whose greatest value is above 255."""
_EXIF_ORIENTATION = 0x0112
_LARGE_ENOUGH = 128  # px; pHash makes 32 of them
_SUBFILE, _REDUCED_OR_MASK = 254, 0b101  # TIFF's tag NewSubfileType: a smaller copy, a transparency mask
EXIF_ROTATED = "EXIF rotation applied"


def sniff(data: bytes) -> Kind | None:
    """The kind of image file that `data` starts like, or None."""
    return next((kind for magic, kind in _MAGIC if data.startswith(magic)), None)


def decode_rgb(data: bytes, least: Size | None = None) -> Pixels:
    """The pixels (H, W, 3) of a JPEG or PNG as they lie in a shard. ValueError when they cannot be read.

    With `least` (height, width), a JPEG of at least twice that is decoded at a fraction of its size that is not below
    it: libjpeg leaves out high frequencies, which takes a fraction of the time and does not alias.
    """
    kind = sniff(data)
    size_of(data)
    if kind == "jpg":
        return _decode_jpeg(data, least or (0, 0))
    return _decode_png(data)


def size_of(data: bytes) -> Size:
    """(height, width) of a JPEG or PNG, from its header."""
    kind = sniff(data)
    if kind == "jpg":
        height, width, _ = _jpeg_header(data)
    elif kind == "png" and len(data) >= 24:
        width, height = struct.unpack(">II", data[16:24])
    else:
        raise ValueError("truncated PNG" if kind == "png" else "not a JPEG or PNG")
    _refuse_huge(height, width)
    return height, width


def _jpeg_header(data: bytes) -> tuple[int, int, str]:
    """Height, width and colour space."""
    try:
        return simplejpeg.decode_jpeg_header(data, strict=False)[:3]
    except KeyError as error:  # a colour space that it does not know
        raise ValueError("not a JPEG that can be read") from error


def _decode_jpeg(data: bytes, least: Size) -> Pixels:
    _, _, colorspace = _jpeg_header(data)
    if colorspace in ("CMYK", "YCCK"):  # Adobe's files are inverted, which Pillow knows and libjpeg does not
        return _decode_with_pillow(data)
    try:
        pixels = simplejpeg.decode_jpeg(
            data, "RGB", strict=False, min_height=least[0], min_width=least[1], min_factor=2 if min(least) else 1
        )
        return np.asarray(pixels)
    except ValueError:
        return _decode_with_pillow(data)


def _decode_png(data: bytes) -> Pixels:
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    return _decode_with_pillow(data) if pixels is None else pixels.astype(np.uint8, copy=False)


def _decode_with_pillow(data: bytes) -> Pixels:
    try:
        with _open(data) as image:
            return np.asarray(image.convert("RGB"))
    except UnidentifiedImageError as error:
        raise ValueError("not a JPEG or PNG that can be read") from error


def decode_ids(data: bytes) -> Pixels:
    """The class ids (H, W) of a mask PNG as it lies in a shard."""
    if sniff(data) != "png" or len(data) < 24:
        raise ValueError("mask is not a PNG")
    width, height = struct.unpack(">II", data[16:24])
    _refuse_huge(height, width)
    mask: Any = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if mask is None or mask.ndim != 2 or mask.dtype != np.uint8:
        raise ValueError("mask is not an 8-bit grey PNG")
    return mask


def encode_png(pixels: NDArray[np.generic]) -> bytes:
    """A PNG of `pixels`: uint8 (H, W) ids, or uint8 (H, W, 3) RGB. The same bytes every time."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()


class Checked(NamedTuple):
    """An image that was decoded to its last pixel and may go into a shard."""

    data: bytes
    kind: Literal["jpg", "png"]
    height: int
    width: int
    mode: str
    note: str  # what was changed, "" when `data` are the original bytes
    grey: Image.Image  # as `grey_copy`


SHRUNK = "shrunk to"
TO_8_BITS = "to 8 bits"


class NoRange(ValueError):
    """An image of more than 8 bits, and no range that says which of its values are black and white."""


def check_image(data: bytes, max_side: int | None = None, window: deep.Range | None = None) -> Checked:
    """Decode an image file fully and make it fit for a shard; ValueError says what is wrong with it.

    8-bit JPEG and PNG keep their bytes. BMP, TIFF and GIF become PNG; so does an image with an EXIF rotation
    (applied) and one with more than 8 bits, because the loader knows neither. `window` is the range of the data set
    that such an image is scaled from; NoRange without one. A file of several pages is refused: no page stands for the
    others. With `max_side`, larger images are shrunk to it and become JPEG of quality 95.
    """
    kind = sniff(data)
    grey = _small_grey(data, strict=True) if kind == "jpg" else None  # to its last byte, at a fraction of the time
    opened = open_image(data, decoded=grey is None)
    if opened is None or deep.is_deep(data, opened):
        mode, orientation = opened.mode if opened else "F", 1
        pixels, note = _scaled(deep.stored_values(data, opened), window)
    else:
        mode, orientation = opened.mode, opened.getexif().get(_EXIF_ORIENTATION, 1)
        large = max_side is not None and max(opened.size) > max_side
        if kind in ("jpg", "png") and orientation in (0, 1) and not large:
            grey = grey or (grey_copy(data) if kind == "jpg" else opened.convert("L"))
            return Checked(data, kind, opened.height, opened.width, mode, "", grey)
        note = f"{kind} to png" if kind not in ("jpg", "png") else ""
        if orientation not in (0, 1):
            note = EXIF_ROTATED
            opened = _rotated(opened)
        pixels = np.asarray(opened.convert("RGB"))
    if max_side is not None and max(pixels.shape[:2]) > max_side:
        return _shrunk(pixels, max_side, mode)
    grey = Image.fromarray(pixels).convert("L")
    return Checked(encode_png(pixels), "png", pixels.shape[0], pixels.shape[1], mode, note, grey)


def grey_copy(data: bytes) -> Image.Image:
    """A JPEG or PNG of a shard in grey, to see what it looks like. A JPEG is decoded at the least fraction of its size
    that is not below 128 px, which takes a fraction of the time."""
    small = _small_grey(data, strict=False) if sniff(data) == "jpg" else None
    if small is not None:
        return small
    image = Image.open(io.BytesIO(data))
    image.draft("L", (_LARGE_ENOUGH, _LARGE_ENOUGH))
    return image.convert("L")


def _small_grey(data: bytes, strict: bool) -> Image.Image | None:
    """None for a JPEG that libjpeg cannot read, or with `strict` warns of."""
    try:
        height, width, _ = _jpeg_header(data)
        _refuse_huge(height, width)
        grey = simplejpeg.decode_jpeg(
            data, "GRAY", strict=strict, min_height=_LARGE_ENOUGH, min_width=_LARGE_ENOUGH, min_factor=1
        )
    except ValueError:
        return None
    return Image.fromarray(grey[..., 0])


def deep_values(data: bytes) -> NDArray[Any] | None:
    """The stored numbers of an image of more than 8 bits, as `deep.stored_values`; None for one of 8. ValueError for
    what is no image, as in `check_image`."""
    if sniff(data) and (not deep.may_be_deep(data[:32]) or _is_plain_tiff(data)):
        return None
    opened = open_image(data)
    return deep.stored_values(data, opened) if opened is None or deep.is_deep(data, opened) else None


def _is_plain_tiff(data: bytes) -> bool:
    """Whether the header alone says that a TIFF has 8 bits; nothing is decoded."""
    import warnings

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data))
        return image.format == "TIFF" and not deep.is_deep(data, image)
    except Exception:  # what it is will be seen when it is decoded
        return False


def _scaled(values: NDArray[Any], window: deep.Range | None) -> tuple[Pixels, str]:
    """8-bit pixels, and what was done."""
    own = deep.extent(values)
    if window is None:
        kind = "float" if own.is_float else "16-bit"
        raise NoRange(f"has {kind} values {deep.range_text(own.low, own.high)}, where 8-bit ones were expected")
    low, high = window
    note = f"scaled from {deep.range_text(low, high)} {TO_8_BITS}"
    if own.low < low or own.high > high:
        note += "; values outside that range were clipped"
    return deep.to_8bit(values, low, high), note


def _shrunk(pixels: Pixels, max_side: int, mode: str) -> Checked:
    factor = max_side / max(pixels.shape[:2])
    height, width = (max(1, round(side * factor)) for side in pixels.shape[:2])
    small = np.ascontiguousarray(cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
    if small.ndim == 2:
        small = np.repeat(small[..., None], 3, axis=2)
    data = simplejpeg.encode_jpeg(small, quality=95)
    note = f"{SHRUNK} {max_side} pixels, JPEG of quality 95"
    return Checked(data, "jpg", height, width, mode, note, grey_copy(data))


MOST_AT_ONCE = 4
"""Channels that OpenCV resizes at once."""


def resize(image: NDArray[Any], size: Size) -> NDArray[Any]:
    """(H, W[, C]) to (*size[, C]): area average when it shrinks, bilinear when it grows."""
    height, width = size
    if image.shape[:2] == size:
        return image
    if image.ndim == 3 and image.shape[2] > MOST_AT_ONCE:
        return np.stack([resize(np.ascontiguousarray(plane), size) for plane in np.moveaxis(image, -1, 0)], axis=-1)
    shrinks = image.shape[0] * image.shape[1] > height * width
    resized: Any = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return resized


def resize_nearest(ids: NDArray[Any], height: int, width: int) -> NDArray[Any]:
    """A mask (H, W) at another size, no new values."""
    # Not INTER_NEAREST, which samples the corner of a pixel and so shifts masks against images by half of one.
    resized: Any = cv2.resize(ids, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
    return resized


def _rotated(image: Image.Image) -> Image.Image:
    from PIL import ImageOps

    return ImageOps.exif_transpose(image)


def open_image(data: bytes, decoded: bool = True) -> Image.Image | None:
    """A file of one image, decoded by Pillow; None for a TIFF of a kind that only OpenCV reads (floats in colour).
    Without `decoded`, a JPEG is only when its pixels are asked for.

    ValueError for what is no image, is damaged, or holds several pages or frames.
    """
    kind = sniff(data)
    if kind is None:
        raise ValueError("not an image" if data else "empty file")
    try:
        image = _open(data, decoded)
    except UnidentifiedImageError as error:
        pages = cv2.imdecodemulti(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)[1] if kind == "tif" else ()
        _refuse_pages(len(pages), "pages")
        if not pages or pages[0].dtype.kind != "f":
            raise ValueError(f"corrupt image (starts like a {kind} file, and is none)") from error
        return None
    return image


def _refuse_pages(count: int, what: str) -> None:
    if count > 1:
        raise ValueError(f"has {count} {what}, and an image is one; save each as a file of its own")


def _pages(image: Image.Image) -> int:
    """How many pictures a TIFF, GIF or PNG holds. Thumbnails beside a TIFF's picture, and a camera's second JPEG, are
    none of their own."""
    count = int(getattr(image, "n_frames", 1)) if image.format in ("TIFF", "GIF", "PNG") else 1
    if count == 1 or image.format != "TIFF":
        return count
    return len(own_pages(image))


def own_pages(image: Image.Image) -> list[int]:
    """The numbers of a TIFF's pages that are pictures of their own."""
    own = []
    for page in range(int(getattr(image, "n_frames", 1))):
        image.seek(page)
        if not int(image.tag_v2.get(_SUBFILE, 0)) & _REDUCED_OR_MASK:  # type: ignore[attr-defined]
            own.append(page)
    image.seek(0)
    return own


def _open(data: bytes, decoded: bool = True) -> Image.Image:
    """A Pillow image; whatever else Pillow or a codec raises becomes a ValueError."""
    import warnings

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # harmless: truncated EXIF, palette transparency, large image
            image: Image.Image = Image.open(io.BytesIO(data))
            _refuse_huge(image.height, image.width)
            if image.format == "PPM" and _DEEP_PPM.match(data):
                raise ValueError("a PPM or PGM of more than 8 bits; save it as PNG or TIFF")
            _refuse_pages(_pages(image), "pages" if image.format == "TIFF" else "frames")
            if (image.format, image.mode) == ("BMP", "1"):  # Pillow reads one of 8 bits with two colours as black
                grey: Any = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
                image = Image.fromarray(grey)
            if decoded or image.format != "JPEG":
                image.load()
    except (ValueError, UnidentifiedImageError):
        raise
    except Exception as error:  # Pillow's codecs raise nearly anything on a broken file
        why = str(error).split("\n")[0].partition(" <_io.")[0]  # without the address of a buffer
        raise ValueError(f"corrupt image ({type(error).__name__}: {why})") from error
    return image


def _refuse_huge(height: int, width: int) -> None:
    if height * width > MAX_PIXELS:
        raise ValueError(f"image of {width} x {height} pixels; the limit is {MAX_PIXELS}")
