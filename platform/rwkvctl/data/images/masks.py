"""Mask files: one value a pixel, by the mode that they are stored in; and what is odd about a mask's shape."""

from __future__ import annotations

from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rwkvctl.data.images import deep
from rwkvctl.data.images.files import Kind, Pixels, open_image, sniff

JPEG_CHROMA = 24
"""How far apart the channels of a grey JPEG may lie."""

ALL_FOREGROUND = "mask is all foreground"
EMPTY = "mask is empty"
OUTLINE = "mask is a thin outline, not an area"


class RawMask(NamedTuple):
    """A mask as it was stored: values (H, W) in uint8 or uint16, the mode and kind of its file."""

    values: NDArray[np.uint8] | NDArray[np.uint16]
    mode: str
    kind: Kind
    indices: NDArray[np.uint8] | None = None
    """Of a palette of greys that ascend from black with their index: the indices, which may be class ids."""

    @property
    def lossy(self) -> bool:
        return self.kind == "jpg"


def read_mask(data: bytes) -> RawMask:
    """The stored values of a mask file, one channel; ValueError when it is not clear which.

    Mode `1` gives {0, 1}. Of a palette the colours decide: greys are the values, whatever their indices; with other
    colours the indices are class ids if index 0 is black or transparent, and of two colours the one that is not black
    is foreground (255). Colour masks must be grey (a JPEG's chroma noise is allowed). An alpha channel that says
    something is the mask where the visible colours say nothing. 16-bit values stay 16-bit.
    """
    image = open_image(data)
    kind = sniff(data)
    assert kind is not None
    if image is None:
        raise ValueError("mask of floats in colour; give grey or palette images")
    mode = image.mode
    if mode in ("RGB", "RGBA", "LA") and deep.is_deep(data, image):
        return RawMask(_whole(deep.stored_values(data, image)), f"{mode};16", kind)
    indices = None
    if mode == "P":
        values, indices = _of_palette(image)
    elif mode in ("1", "L"):
        values = np.asarray(image).astype(np.uint8)
    elif mode in ("LA", "PA", "RGB", "RGBA"):
        pixels = np.asarray(image.convert("RGBA") if mode == "PA" else image)
        values = _of_channels(pixels, with_alpha=mode.endswith("A"), tolerance=JPEG_CHROMA if kind == "jpg" else 0)
    elif mode.startswith(("I", "F")):
        return RawMask(_whole(deep.stored_values(data, image)), mode, kind)
    else:
        raise ValueError(f"mask with pixel mode {mode}; give grey or palette images")
    return RawMask(values, mode, kind, indices)


def read_colours(data: bytes) -> tuple[Pixels, bool] | None:
    """The colours (H, W, 3) that a mask file shows, and whether it is lossy; None for more than 8 bits a channel.

    What is fully transparent is black. ValueError for what is no image.
    """
    image = open_image(data)
    if image is None or deep.is_deep(data, image):
        return None
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        pixels = np.asarray(image.convert("RGBA"))
        colours = np.where(pixels[..., 3:] > 0, pixels[..., :3], np.uint8(0))
    else:
        colours = np.asarray(image.convert("RGB"))
    return colours, sniff(data) == "jpg"


def read_indices(data: bytes) -> Pixels | None:
    """The indices (H, W) of a file with a palette, whatever their colours; None for other files."""
    image = open_image(data)
    return np.asarray(image).astype(np.uint8) if image is not None and image.mode == "P" else None


def _whole(values: NDArray[Any]) -> NDArray[np.uint16]:
    if values.ndim != 2:
        raise ValueError("mask is in colour; give one grey value a class")
    if (values != np.clip(np.rint(values), 0, 65535)).any():  # NaN, too
        raise ValueError(f"mask values from {values.min():g} to {values.max():g}; give whole ones from 0 to 65535")
    return values.astype(np.uint16)


def _of_palette(image: Image.Image) -> tuple[Pixels, Pixels | None]:
    """The values that a palette image shows, or its class ids; with the indices as in `RawMask`."""
    indices = np.asarray(image).astype(np.uint8)
    image.apply_transparency()  # to the palette, which else says nothing of it
    table = np.zeros((256, 4), np.uint8)
    colours = np.array(image.getpalette("RGBA"), np.uint8).reshape(-1, 4)
    table[: len(colours)] = colours
    used = np.unique(indices)
    shown = table[used, :3]
    grey = (shown == shown[:, :1]).all()
    greys_only = (colours[:, :3] == colours[:, :1]).all()
    if grey and (greys_only or set(shown[:, 0].tolist()) <= {0, 255}):
        if (table[used, 3] < 255).any():
            return _of_channels(table[indices], with_alpha=True, tolerance=0), None
        ascends = not table[0, :3].any() and bool((np.diff(shown[:, 0].astype(int)) > 0).all())
        return table[indices, 0], indices if ascends else None
    black = used[(table[used, :3] == 0).all(axis=1) | (table[used, 3] == 0)]
    if 0 in black or (0 not in used and len(black) == 0):
        return indices, None
    if len(used) == 2 and len(black) == 1:
        return np.where(indices == black[0], 0, 255).astype(np.uint8), None
    first = ", ".join(map(str, table[0, :3].tolist()))
    raise ValueError(f"palette mask whose index 0 is RGB ({first}), not black; save it with one grey value a class")


def _of_channels(pixels: Pixels, with_alpha: bool, tolerance: int) -> Pixels:
    """The one channel of grey pixels (H, W, 1..4) that is the mask."""
    if not with_alpha:
        return _grey_of(pixels, tolerance)
    colours, alpha = pixels[..., :-1], pixels[..., -1]
    if not alpha.any():
        raise ValueError("mask is fully transparent")
    if alpha.min() == alpha.max():
        return _grey_of(colours, tolerance)
    shown, hidden = colours[alpha > 0], colours[alpha == 0]
    drawn_in_one = bool((shown == shown[0]).all())
    # One colour on nothing is where it was drawn, unless it is a class id, which then is the value.
    is_id = len(set(shown[0].tolist())) == 1 and 0 < shown[0, 0] < 255 and not hidden.any()
    if drawn_in_one and not is_id:
        return np.ascontiguousarray(alpha)
    if hidden.any() or colours[(alpha > 0) & (alpha < 255)].any():
        raise ValueError("mask whose grey values and alpha channel differ; save it without alpha")
    return _grey_of(colours, tolerance)


def _grey_of(pixels: Pixels, tolerance: int) -> Pixels:
    channels = [pixels[..., i] for i in range(pixels.shape[-1])]  # a reduction over the last axis takes 20 times longer
    spread = np.maximum.reduce(channels) - np.minimum.reduce(channels)
    if int(spread.max(initial=0)) > tolerance:
        raise ValueError("mask is in colour; give one grey value a class")
    return channels[0]


# What is odd about a mask -------------------------------------------------------------------------------------------

_HOLLOW = 0.5
_THIN = 0.1


def oddity(ids: NDArray[np.uint8]) -> str:
    """What a person should look at in a mask (H, W) of class ids: `EMPTY`, `ALL_FOREGROUND`, `OUTLINE`, or ""."""
    foreground = (ids > 0) & (ids < 255)
    if not foreground.any():
        return EMPTY
    if foreground.all():
        return ALL_FOREGROUND
    return OUTLINE if _is_outline(foreground) else ""


def _is_outline(foreground: NDArray[np.bool_]) -> bool:
    """Whether most of a mask's area lies inside closed thin lines that are not filled.

    A line's mean width is its area over its length; it is thin below a tenth of the side of a square as large as what
    it encloses, and hollow if a single hole is at least half of that. A ring-shaped organ is thicker, a net of vessels
    encloses many small holes.
    """
    contours, levels = cv2.findContours(foreground.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    if levels is None:
        return False
    inside, whole = 0.0, 0.0
    for number, (_, _, child, parent) in enumerate(levels[0]):
        if parent >= 0:
            continue
        area = cv2.contourArea(contours[number])
        whole += area
        holes = []
        while child >= 0:
            holes.append(cv2.contourArea(contours[child]))
            child = levels[0][child][0]
        width = (area - sum(holes)) / max(1.0, cv2.arcLength(contours[number], closed=True))
        if holes and max(holes) >= _HOLLOW * area and width < _THIN * area**0.5:
            inside += area
    return whole > 0 and inside > 0.5 * whole
