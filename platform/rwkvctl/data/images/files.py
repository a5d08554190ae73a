"""Image files: which kind they are, their size, their pixels; masks by the mode they are stored in.

Kinds are told by magic bytes, never by the file's extension (ImageNet holds a PNG that is called .JPEG).
Decoding takes simplejpeg for JPEG and OpenCV for PNG; Pillow for what these two do not do faithfully.
"""

from __future__ import annotations

import io
import struct
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

Kind = Literal["jpg", "png", "bmp", "tif", "gif"]
Pixels = NDArray[np.uint8]
Size = tuple[int, int]

MAX_PIXELS = 1 << 27
"""Larger images are refused before any memory is taken for them (134 million pixels)."""

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".gif"})

_MAGIC: tuple[tuple[bytes, Kind], ...] = (
    (b"\xff\xd8\xff", "jpg"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"BM", "bmp"),
    (b"II*\0", "tif"),
    (b"MM\0*", "tif"),
    (b"GIF8", "gif"),
)
_EXIF_ORIENTATION = 0x0112


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
    with _open(data) as image:
        return np.asarray(image.convert("RGB"))


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


SHRUNK = "shrunk to"


def check_image(data: bytes, max_side: int | None = None) -> Checked:
    """Decode an image file fully and make it fit for a shard; ValueError says what is wrong with it.

    8-bit JPEG and PNG keep their bytes. BMP, TIFF and GIF become PNG; so does an image with an EXIF rotation
    (applied) and one with more than 8 bits (scaled to 8), because the loader knows neither. With `max_side`, larger
    images are shrunk to it and become JPEG of quality 95.
    """
    kind = sniff(data)
    if kind is None:
        raise ValueError("not an image" if data else "empty file")
    with _open(data) as image:
        mode = image.mode
        orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
        deep = mode.startswith(("I", "F"))
        large = max_side is not None and max(image.size) > max_side
        if kind in ("jpg", "png") and orientation in (0, 1) and not deep and not large:
            return Checked(data, kind, image.height, image.width, mode, "")
        note = f"{kind} to png" if kind not in ("jpg", "png") else ""
        if orientation not in (0, 1):
            note = "EXIF rotation applied"
            image = _rotated(image)
        pixels = _to_8bit(np.asarray(image)) if deep else np.asarray(image.convert("RGB"))
        note = "scaled to 8 bits" if deep else note
    if large:
        return _shrunk(pixels, max_side or 0, mode)
    return Checked(encode_png(pixels), "png", pixels.shape[0], pixels.shape[1], mode, note)


def _shrunk(pixels: Pixels, max_side: int, mode: str) -> Checked:
    factor = max_side / max(pixels.shape[:2])
    height, width = (max(1, round(side * factor)) for side in pixels.shape[:2])
    small = np.ascontiguousarray(cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
    if small.ndim == 2:
        small = np.repeat(small[..., None], 3, axis=2)
    data = simplejpeg.encode_jpeg(small, quality=95)
    return Checked(data, "jpg", height, width, mode, f"{SHRUNK} {max_side} pixels, JPEG of quality 95")


def perceptual_hash(data: bytes) -> str:
    """64 bits as hex digits, nearly equal for images that look the same: pHash of a JPEG or PNG of a shard."""
    import imagehash

    image = Image.open(io.BytesIO(data))
    image.draft("L", (128, 128))  # a JPEG is decoded at a fraction of its size
    with image:
        return str(imagehash.phash(image))


def resize_nearest(ids: NDArray[Any], height: int, width: int) -> NDArray[Any]:
    """A mask (H, W) at another size, no new values."""
    # Not INTER_NEAREST, which samples the corner of a pixel and so shifts masks against images by half of one.
    resized: Any = cv2.resize(ids, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
    return resized


def _rotated(image: Image.Image) -> Image.Image:
    from PIL import ImageOps

    return ImageOps.exif_transpose(image)


def _to_8bit(pixels: NDArray[np.generic]) -> Pixels:
    if pixels.dtype.kind == "f" or pixels.min() < 0 or pixels.max() > 65535:
        raise ValueError(f"pixels of type {pixels.dtype} outside 0..65535")
    return (pixels.astype(np.uint32) // 257).astype(np.uint8)


class RawMask(NamedTuple):
    """A mask as it was stored: values (H, W) in uint8 or uint16, the mode and kind of its file."""

    values: NDArray[np.uint8] | NDArray[np.uint16]
    mode: str
    kind: Kind

    @property
    def lossy(self) -> bool:
        return self.kind == "jpg"


def read_mask(data: bytes) -> RawMask:
    """The stored values of a mask file, one channel; ValueError when it is not clear which.

    Mode `1` gives {0, 1}; `P` gives palette indices, not colours; colour masks must be grey (a JPEG's chroma
    noise is allowed); alpha is ignored unless nothing is opaque; 16-bit values stay 16-bit.
    """
    kind = sniff(data)
    if kind is None:
        raise ValueError("not an image" if data else "empty file")
    with _open(data) as image:
        mode = image.mode
        pixels = np.asarray(image)
    if mode in ("1", "L", "P"):
        values = pixels.astype(np.uint8)
    elif mode in ("LA", "RGB", "RGBA"):
        values = _grey_of(pixels, mode, tolerance=24 if kind == "jpg" else 0)
    elif mode.startswith("I") and pixels.min() >= 0 and pixels.max() <= 65535:
        values = pixels.astype(np.uint16)
    else:
        raise ValueError(f"mask with pixel mode {mode}; give grey or palette images")
    return RawMask(values, mode, kind)


def _grey_of(pixels: Pixels, mode: str, tolerance: int) -> Pixels:
    if mode.endswith("A"):
        if not pixels[..., -1].any():
            raise ValueError("mask is fully transparent")
        pixels = pixels[..., :-1]
    channels = [pixels[..., i] for i in range(pixels.shape[-1])]  # a reduction over the last axis takes 20 times longer
    spread = np.maximum.reduce(channels) - np.minimum.reduce(channels)
    if int(spread.max(initial=0)) > tolerance:
        raise ValueError("mask is in colour; give one grey value a class")
    return pixels[..., 0]


def _open(data: bytes) -> Image.Image:
    """A Pillow image, decoded; whatever Pillow or a codec raises becomes a ValueError."""
    import warnings

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # harmless: truncated EXIF, palette transparency, large image
            image = Image.open(io.BytesIO(data))
            _refuse_huge(image.height, image.width)
            image.load()
    except ValueError:
        raise
    except Exception as error:  # Pillow's codecs raise nearly anything on a broken file
        raise ValueError(f"corrupt image ({type(error).__name__}: {str(error).split(chr(10))[0]})") from error
    return image


def _refuse_huge(height: int, width: int) -> None:
    if height * width > MAX_PIXELS:
        raise ValueError(f"image of {width} x {height} pixels; the limit is {MAX_PIXELS}")
