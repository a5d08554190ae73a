"""Masks whose values or colours a table of classes names (`--classes FILE`, `--classes name=value,...`)."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwkvctl.data.convert import class_table
from rwkvctl.data.convert.class_table import ClassTable
from rwkvctl.data.convert.formats.pairs import IGNORED, Mask
from rwkvctl.data.images import masks, near_colours
from rwkvctl.data.images.near_colours import UNKNOWN, Ids, Settled

MOST_MOVED = {True: 0.2, False: 0.1}
"""Of a JPEG, and of other files: a larger share of pixels that are not quite of a class is a fault."""
MOST_IGNORED = 0.005
_STEPS = (0.1, 1, 5, 10, 20)
"""Per cent up to which shares are told, so that images can be counted by them."""
_SHOWN = 3


@dataclass(frozen=True)
class ByTable:
    """Reads a mask by its colours, or by its values, whichever of them the table has."""

    table: ClassTable

    def __call__(self, data: bytes) -> Mask:
        first: Settled | None = None
        for kind, pixels, lossy in self._ways(data):
            settled = self._settled(kind, pixels, lossy)
            if not (settled.ids == UNKNOWN).any() and not settled.moved:
                return Mask(settled.ids.astype(np.uint8), self.rule)
            if first is None:
                first, first_pixels, first_lossy, first_kind = settled, pixels, lossy, kind
        assert first is not None, "there is at least one way to read a mask"
        return self._accepted(first, first_kind, first_pixels, first_lossy)

    def _ways(self, data: bytes) -> Iterator[tuple[str, NDArray[Any], bool]]:
        """What the mask may say, the likelier first: colours (H, W, 3), values (H, W), the indices of its palette."""
        table = self.table
        shown = masks.read_colours(data) if table.colours else None
        if shown is not None and not (table.values and _is_grey(shown[0])):
            yield "colour", *shown
        if not table.values:
            if shown is None:
                raise ValueError("mask has more than 8 bits, and --classes has colours; give its values instead")
            return
        indices = masks.read_indices(data)
        try:
            raw = masks.read_mask(data)
        except ValueError as error:
            if indices is None and shown is None:
                raise ValueError(f"{error}, or --classes with the colours") from error
        else:
            yield "value", raw.values, raw.lossy
        if indices is not None:
            yield "value", indices, False

    def _settled(self, kind: str, pixels: NDArray[Any], lossy: bool) -> Settled:
        if kind == "colour":
            packed = np.left_shift(pixels[..., 0], 16, dtype=np.int32)
            packed |= np.left_shift(pixels[..., 1], 8, dtype=np.int32) | pixels[..., 2]
            exact: Ids = _colour_lookup(self.table.colours)[packed]
            points: list[tuple[tuple[int, ...], int]] = list(self.table.colours)
        else:
            exact = _value_lookup(self.table.values)[pixels]
            points = [((end,), own) for first, last, own in self.table.values for end in {first, last}]
            if pixels.dtype != np.uint8:
                return Settled(exact, 0.0)
            pixels = pixels[..., None]
        return near_colours.settle(pixels, exact, [own for own, _ in points], [own for _, own in points], lossy)

    def _accepted(self, settled: Settled, kind: str, pixels: NDArray[Any], lossy: bool) -> Mask:
        unknown = settled.ids == UNKNOWN
        share = float(unknown.mean())
        if share > (MOST_IGNORED if settled.moved else 0):
            smooth = ", or save masks as PNG without smoothing" if lossy or settled.moved else ""
            listed = _listed(kind, pixels, unknown)
            raise ValueError(f"mask has {listed}, which --classes lacks; add a class for it{smooth}")
        if settled.moved > MOST_MOVED[lossy]:
            raise ValueError(
                f"{100 * settled.moved:.2g} % of the mask's pixels are not quite of a class's {kind}, at most "
                f"{100 * MOST_MOVED[lossy]:g} % are moved to the nearest; save masks as PNG, resized without smoothing"
            )
        notes = []
        if settled.moved:
            notes.append(
                f"{_up_to(settled.moved)} of the mask's pixels lay near a class's {kind} and went to that class"
            )
        if share:
            notes.append(f"{_up_to(share)} of the mask's pixels lay near no class's {kind} and are ignored")
        return Mask(np.where(unknown, IGNORED, settled.ids).astype(np.uint8), self.rule, note="; ".join(notes))

    @property
    def rule(self) -> str:
        of = [(class_table.shown("value", key), key[2]) for key in self.table.values]
        of += [(class_table.shown("colour", key), own) for key, own in self.table.colours]
        kind = (
            "value or colour"
            if self.table.values and self.table.colours
            else "colour"
            if self.table.colours
            else "value"
        )
        return f"{kind} " + ", ".join(f"{key}: {own}" for key, own in of)


def _is_grey(pixels: NDArray[np.uint8]) -> bool:
    return bool((pixels.max(-1).astype(int) - pixels.min(-1) <= masks.JPEG_CHROMA).all())


@functools.lru_cache(maxsize=2)
def _colour_lookup(colours: tuple[tuple[class_table.Colour, int], ...]) -> Ids:
    """Class ids by 0xrrggbb."""
    lookup = np.full(1 << 24, UNKNOWN, np.int16)
    for (red, green, blue), own in colours:
        lookup[red << 16 | green << 8 | blue] = own
    return lookup


@functools.lru_cache(maxsize=8)
def _value_lookup(values: tuple[tuple[int, int, int], ...]) -> Ids:
    lookup = np.full(class_table.MOST_VALUE + 1, UNKNOWN, np.int16)
    for first, last, own in values:
        lookup[first : last + 1] = own
    return lookup


def _listed(kind: str, pixels: NDArray[Any], unknown: NDArray[np.bool_]) -> str:
    """`value 170 (5.3 % of its pixels), 180 (1 %) and 2 more`: the most frequent that no class has."""
    found, counts = np.unique(pixels[unknown], axis=0, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    texts: list[str] = []
    for n in order[:_SHOWN]:
        key = f"'{class_table.shown(kind, found[n].tolist())}'" if kind == "colour" else str(found[n])
        of = " of its pixels" if not texts else ""
        texts.append(f"{key} ({100 * counts[n] / unknown.size:.2g} %{of})")
    more = f" and {len(order) - _SHOWN} more" if len(order) > _SHOWN else ""
    return f"{kind} {', '.join(texts)}{more}"


def _up_to(share: float) -> str:
    """`up to 1 %`"""
    return f"up to {next((step for step in _STEPS if 100 * share <= step), 100)} %"
