"""What all labels of a stack have in common, by a look at every one: floats that stand for black and white, a plane a
class, colours."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from rwkvctl.base.errors import BadFile, UserError
from rwkvctl.data.convert.array_elements import ROUNDING, Stack, chunks, whole
from rwkvctl.data.convert.stack_axes import COLOURS

_WHITE = 255


def described(label: Stack) -> Stack:
    """A stack of masks with what its numbers mean; UserError for planes of fractions."""
    if label.size("c") > 1:
        return _with_planes(label)
    return replace(label, of_unit=_is_of_unit(label)) if np.dtype(label.dtype).kind == "f" else label


def _is_of_unit(label: Stack) -> bool:
    """Whether floats lie between 0 and 1 and some in between, as resizing and division by 255 leave them."""
    has_fractions = False
    for values in chunks(label):
        if not (values.min() >= 0 and values.max() <= 1):
            return False
        has_fractions = has_fractions or bool((np.abs(values - np.rint(values)) > ROUNDING).any())
    return has_fractions


def _with_planes(label: Stack) -> Stack:
    """The first plane is the background if every pixel is of exactly one plane. Three planes may be colours."""
    highest, is_whole, is_grey = 0.0, True, True
    for values in chunks(label):
        found = np.unique(values)
        if len(found) > 2 or not np.isfinite(found).all() or found[0] < 0 or (len(found) == 2 and found[0] != 0):
            if label.dtype == "|u1" and label.size("c") == COLOURS:
                return label
            raise UserError(
                f"{label}: has {label.size('c')} planes, of which each should hold 0 and one other number, but the "
                f"numbers are {', '.join(f'{value:g}' for value in found[:4])}, ...; save class ids instead"
            )
        highest = max(highest, float(found[-1]))
        is_whole = is_whole and bool((np.count_nonzero(values, axis=-1) == 1).all())
        is_grey = is_grey and bool((values == values[..., :1]).all())
    if label.dtype == "|u1" and label.size("c") == COLOURS and (highest == _WHITE or is_grey):
        return label
    count = label.size("c")
    return replace(label, planes=tuple(range(count)) if is_whole else tuple(range(1, count + 1)))


def numbers(label: Stack, count: int) -> list[int]:
    """The class of each image, of labels (N,), (N, 1), or (N, K) with a 1 for its class."""
    values = whole(label)
    if len(values) != count:
        raise UserError(f"{label}: has {len(values)} labels, its images are {count}; give as many")
    if values.ndim == 2 and values.shape[1] > 1:
        if not (((values == 0) | (values == 1)).all() and (values.sum(axis=1) == 1).all()):
            raise UserError(
                f"{label}: has {values.shape[1]} labels an image, not all of them with a single 1; images have one "
                "class each"
            )
        return [int(own) for own in values.argmax(axis=1)]
    flat = values.reshape(len(values))
    if flat.dtype.kind == "f" and not (np.isfinite(flat).all() and (flat == np.rint(flat)).all()):
        raise UserError(f"{label}: labels are not whole numbers; save them as integers")
    return [int(own) for own in flat]


def texts(stack: Stack, count: int) -> list[str]:
    """One word an image, of an array that says whose each is, or for what."""
    values = whole(stack).reshape(-1)
    if len(values) != count:
        raise UserError(f"{stack}: has {len(values)} entries, the images are {count}; give as many")
    if not all(isinstance(own, bytes | str | int | float | np.generic) for own in values[:1]):
        raise BadFile(f"{stack}: holds no text and no numbers; save plain ones")
    return [own.decode(errors="replace") if isinstance(own, bytes) else str(own) for own in values.tolist()]
