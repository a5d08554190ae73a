"""Words on a picture: what it shows, what each panel is, and which colour is which class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

SIZE = 15
LINE = 20
MARGIN = 6
INK, PAPER = (30, 30, 30), (255, 255, 255)
Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Caption:
    """What stands above and below a picture."""

    heading: str
    panels: Sequence[str] = ()
    """A title for each of the panels, which are equally wide."""
    legend: Sequence[tuple[Colour, str]] = ()


def captioned(picture: NDArray[np.uint8], caption: Caption) -> NDArray[np.uint8]:
    """The picture (H, W, 3) between its heading and its legend; lines that are too long are broken."""
    width = picture.shape[1]
    heading = broken(caption.heading, width - 2 * MARGIN)
    legend = rows_of(caption.legend, width)
    above = MARGIN + LINE * (len(heading) + bool(caption.panels))
    below = LINE * len(legend) + (MARGIN if legend else 0)
    sheet = Image.new("RGB", (width, above + picture.shape[0] + below), PAPER)
    sheet.paste(Image.fromarray(picture), (0, above))
    draw = ImageDraw.Draw(sheet)
    for number, line in enumerate(heading):
        draw.text((MARGIN, 2 + number * LINE), line, INK, font())
    for number, title in enumerate(caption.panels):
        draw.text((MARGIN + number * width / len(caption.panels), above - LINE), title, INK, font())
    for number, row in enumerate(legend):
        top = above + picture.shape[0] + MARGIN // 2 + number * LINE
        for left, colour, text in row:
            draw.rectangle((left, top + 4, left + 11, top + 15), fill=colour, outline=INK)
            draw.text((left + 17, top), text, INK, font())
    return np.asarray(sheet)


@cache
def font() -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib brings along: Latin, Greek and Cyrillic letters."""
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), SIZE)


def width_of(text: str) -> float:
    return font().getlength(text)


def broken(text: str, width: float) -> list[str]:
    """Lines of whole words that are no wider than `width`; a longer word is cut."""
    lines: list[str] = []
    for word in " ".join(text.split()).split(" "):
        word = shortened(word, width)
        if lines and width_of(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def shortened(text: str, width: float) -> str:
    if width_of(text) <= width:
        return text
    while text and width_of(f"{text}…") > width:
        text = text[:-1]
    return f"{text}…"


def rows_of(legend: Sequence[tuple[Colour, str]], width: int) -> list[list[tuple[int, Colour, str]]]:
    """Each entry's place from the left, its colour and its text, in as many rows as it takes."""
    rows: list[list[tuple[int, Colour, str]]] = []
    left = width
    for colour, full in legend:
        text = shortened(" ".join(full.split()), width - 2 * MARGIN - 17)
        wide = 17 + round(width_of(text)) + 2 * MARGIN
        if left + wide > width:
            rows.append([])
            left = MARGIN
        rows[-1].append((left, colour, text))
        left += wide
    return rows
