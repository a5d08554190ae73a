"""TIFF files of several pages: a volume slice by slice, or a stack of pictures, as Fiji and microscopes save them."""

from __future__ import annotations

import io
import re
import struct
import warnings
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rwkvctl.base.files import atomic_path
from rwkvctl.data.images import deep
from rwkvctl.data.images.files import MAX_PIXELS, own_pages, sniff

MOST_PIXELS = 1 << 31
"""Of all pages together."""
DESCRIPTION, ORIENTATION = 270, 274
RESOLUTION = (282, 283, 296)
"""Pixels a unit along x and y, and the unit."""
_MM = {"mm": 1.0, "cm": 10.0, "m": 1000.0, "inch": 25.4, "in": 25.4, "nm": 1e-6}
_MM |= dict.fromkeys(("micron", "microns", "um", "µm", "μm"), 1e-3)
_MM_OF_TAG = {2: 25.4, 3: 10.0}
"""Of ImageJ's units and TIFF's own, in mm."""
IMAGEJ = re.compile(r"^ImageJ=", re.ASCII)
OF_VALUES = ("min=", "max=", "mode=", "loop=")
"""Lines of ImageJ's description that are about an image's own values."""


class Stack(NamedTuple):
    """Pages of one size: uint8 (N, H, W) or (N, H, W, 3), or the stored numbers (N, H, W) of more than 8 bits."""

    pages: NDArray[Any]
    is_deep: bool
    calibration: dict[int, Any]
    """The tags that say how large a pixel is, and what Fiji knows of the pages."""


def page_count(path: Path) -> int:
    """How many pictures a TIFF holds, or held before it was cut off, thumbnails and masks beside them not counted; 1
    for every other file."""
    try:
        with path.open("rb") as file:
            return pages_in(file)
    except OSError:
        return 1


def pages_in(file: BinaryIO) -> int:
    """As `page_count`, of an open file."""
    try:
        if sniff(file.read(16)) != "tif":
            return 1
        if not _is_whole(file):
            return 2
        with warnings.catch_warnings(), Image.open(file) as image:
            warnings.simplefilter("ignore")
            return max(len(own_pages(image)), _said(image))
    except Exception:  # Pillow raises nearly anything on a broken file, which is told when it is read
        return 1


def read(data: bytes) -> Stack:
    """The pages of a TIFF; ValueError, in one line, for those that are no stack."""
    if not _is_whole(io.BytesIO(data)):
        raise ValueError("corrupt TIFF (cut off: more pages were to follow); copy it again")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(data)) as image:
                return _read(data, image)
        except ValueError:
            raise
        except Exception as error:  # Pillow's codecs raise nearly anything on a broken file
            why = str(error).split("\n")[0].partition(" <_io.")[0]
            raise ValueError(f"corrupt TIFF ({type(error).__name__}: {why})") from error


def _is_whole(file: BinaryIO) -> bool:
    """Whether the last page says that none follows. Of a file that is cut off between pages, all readers take the
    rest for the whole."""
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    order = "<" if file.read(4).startswith(b"II") else ">"
    place, seen = _number(file, f"{order}I"), set[int]()
    while place and place not in seen and place + 2 <= size:
        seen.add(place)
        file.seek(place)
        file.seek(place + 2 + 12 * _number(file, f"{order}H"))
        place = _number(file, f"{order}I", otherwise=size)
    return not place


def _number(file: BinaryIO, form: str, otherwise: int = 0) -> int:
    data = file.read(struct.calcsize(form))
    return int(struct.unpack(form, data)[0]) if len(data) == struct.calcsize(form) else otherwise


def _read(data: bytes, image: Image.Image) -> Stack:
    numbers = own_pages(image)
    if (said := _said(image)) > len(numbers):
        raise ValueError(
            f"says that it has {said} images, of which {len(numbers)} can be read; save it as NRRD or .npy"
        )
    size = image.size
    if image.width * image.height > MAX_PIXELS or image.width * image.height * len(numbers) > MOST_PIXELS:
        raise ValueError(f"{len(numbers)} pages of {size[0]} x {size[1]} pixels are too large; split it")
    pages, kinds = [], set()
    for number in numbers:
        image.seek(number)
        if image.size != size:
            raise ValueError("has pages of several sizes; save each as a file of its own")
        if image.getexif().get(ORIENTATION, 1) not in (0, 1):
            raise ValueError("has pages with an orientation tag; save them upright")
        page, kind = _page(data, image)
        pages.append(page)
        kinds.add((kind, page.ndim, page.dtype))
    if len(kinds) > 1:
        raise ValueError("has pages of several kinds (grey and colour, or of other depths); save them alike")
    return Stack(np.stack(pages), pages[0].dtype != np.uint8, calibration(image))


def _page(data: bytes, image: Image.Image) -> tuple[NDArray[Any], str]:
    if deep.is_deep(data, image):
        if not image.mode.startswith(("I", "F")):
            raise ValueError("has several pages in colour of more than 8 bits; save each as a file of its own")
        return deep.stored_values(data, image), image.mode
    image.load()
    return np.asarray(image.convert("L" if image.mode in ("1", "L") else "RGB")), "8 bits"


def _said(image: Image.Image) -> int:
    """How many images ImageJ says there are; above 4 GB it writes one entry for all of them."""
    found = re.search(r"^images=(\d+)", _description(image), re.MULTILINE | re.ASCII)
    return int(found[1]) if found else 1


def _description(image: Image.Image) -> str:
    text = str(image.tag_v2.get(DESCRIPTION, ""))  # type: ignore[attr-defined]
    return text if IMAGEJ.match(text) else ""


def calibration(image: Image.Image) -> dict[int, Any]:
    image.seek(0)
    tags = {tag: image.tag_v2[tag] for tag in RESOLUTION if tag in image.tag_v2}  # type: ignore[attr-defined]
    lines = [line for line in _description(image).splitlines() if not line.startswith(OF_VALUES)]
    return tags | ({DESCRIPTION: "\n".join(lines) + "\n"} if lines else {})


def shape_in(file: BinaryIO) -> tuple[tuple[int, int, int], dict[int, Any]]:
    """The size (pages, H, W) and calibration of an open file, without its pixels; ValueError for what is no TIFF."""
    try:
        with warnings.catch_warnings(), Image.open(file) as image:
            warnings.simplefilter("ignore")
            pages = max(len(own_pages(image)), _said(image))
            return (pages, image.height, image.width), calibration(image)
    except Exception as error:  # Pillow raises nearly anything on a broken file
        raise ValueError(f"corrupt TIFF ({type(error).__name__})") from error


def spacing_mm(calibration: dict[int, Any]) -> tuple[float, float, float] | None:
    """mm from page to page, row to row and column to column, as ImageJ keeps it; None where one of them is not said."""
    told = dict(line.split("=", 1) for line in str(calibration.get(DESCRIPTION, "")).splitlines() if "=" in line)
    unit = told.get("unit", "").strip().lower().replace("\\u00b5", "µ")
    mm = _MM.get(unit) or _MM_OF_TAG.get(int(calibration.get(RESOLUTION[2], 1)))
    try:
        steps = float(told["spacing"]), 1 / float(calibration[RESOLUTION[1]]), 1 / float(calibration[RESOLUTION[0]])
    except (KeyError, ValueError, TypeError, ZeroDivisionError):
        return None
    if mm is None or not all(0 < step < float("inf") for step in steps):
        return None
    return steps[0] * mm, steps[1] * mm, steps[2] * mm


def write(calibration: dict[int, Any], target: Path, ids: NDArray[np.uint8]) -> None:
    """Write class ids (N, H, W) as a TIFF of as many grey pages, atomically, with the calibration of its image."""
    first, *others = (Image.fromarray(page) for page in ids)
    with atomic_path(target) as temporary:
        first.save(
            temporary,
            "TIFF",
            save_all=True,
            append_images=others,
            compression="tiff_adobe_deflate",
            tiffinfo=calibration,
        )
