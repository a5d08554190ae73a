"""Whether two volumes are one scan: saved with another window, resampled, turned, mirrored, or with slices cut off.

A look is a small copy of a volume. Of each slab of it the fine structure is kept, its contrast made even, so that
windows and scales do not count. Two volumes may be one scan if most slabs of one are found in the other, in whichever
order and turned whichever way: so are other scans of the same body, as a heart in another phase. They are one scan if
then nearly every place of these slabs shows the same.
"""

from __future__ import annotations

import base64
import itertools
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

Look = NDArray[np.uint8]
"""(slabs, SIDE, SIDE)"""

SIDE, SLABS = 64, 24
COARSE, COARSE_SLABS = 16, 12
"""What is compared of every two volumes."""
LEAST_ALIKE = 0.7
"""Median correlation of the slabs with their best ones in the other. Of two patients of ACDC 0.45 at most."""
MOST_OTHER = 0.01
"""Share of the places that may show something else. A heart in its two phases has 0.017 at least."""
SAME_HERE = 0.8
"""Correlation around a place from which it shows the same."""
MOST_VOLUMES = 2000
"""All pairs are compared, which takes a minute for a thousand volumes."""
_LEAST_VARIANCE = 30.0
_LEAST_PLACES = 0.005
_SAMPLED = 1 << 16
_VIEWS = 8


class Near(NamedTuple):
    """Pairs of volumes that are one scan, and of those that show the same body otherwise."""

    same: list[tuple[str, str]]
    alike: list[tuple[str, str]]


def look(image: NDArray[np.floating]) -> Look:
    """Of a volume (D, H, W), or of the first channel of (D, H, W, C)."""
    volume = image[..., 0] if image.ndim == 4 else image
    step = max(1, volume.size // _SAMPLED) | 1  # odd, so that it goes through all columns
    low, high = np.percentile(volume.reshape(-1)[::step], [1, 99])
    ends = np.linspace(0, len(volume), min(SLABS, len(volume)) + 1).round().astype(int)
    slabs = [volume[start:end].mean(axis=0, dtype=np.float32) for start, end in itertools.pairwise(ends)]
    small = np.stack([cv2.resize(slab, (SIDE, SIDE), interpolation=cv2.INTER_AREA) for slab in slabs])
    return (np.clip((small - low) / max(float(high - low), 1e-6), 0, 1) * 255).astype(np.uint8)


def packed(own: Look) -> str:
    return base64.b64encode(zlib.compress(own.tobytes(), 1)).decode()


def unpacked(text: str) -> Look:
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8).reshape(-1, SIDE, SIDE)


def near(looks: Mapping[str, str]) -> Near:
    """Of volumes by id, their looks `packed`. Every two are compared."""
    keys = list(looks)
    found = Near([], [])
    opened = [unpacked(text) for text in looks.values()]
    for first, second in _alike(opened):
        kind = found.same if is_same(opened[first], opened[second]) else found.alike
        kind.append((keys[first], keys[second]))
    return found


# Every two, coarsely ------------------------------------------------------------------------------------------------


def _alike(looks: Sequence[Look]) -> Iterator[tuple[int, int]]:
    """Pairs (i < j) of which most slabs of one are in the other."""
    small = [_shrunk(own) for own in looks]
    if len(small) < 2:
        return
    plain = np.concatenate([_structures(own) for own in small])
    views = [_view(plain.reshape(-1, COARSE, COARSE), n).reshape(plain.shape) for n in range(_VIEWS)]
    starts = np.concatenate([[0], np.cumsum([len(own) for own in small])])
    scores = np.empty((len(small), len(small)), np.float32)
    for number in range(len(small)):
        own = views[0][starts[number] : starts[number + 1]][:: max(1, len(small[number]) // COARSE_SLABS)]
        best = [np.median(np.maximum.reduceat(own @ view.T, starts[:-1], axis=1), axis=0) for view in views]
        scores[number] = np.max(best, axis=0)
    rows, columns = np.nonzero(np.triu(np.maximum(scores, scores.T) >= LEAST_ALIKE, 1))
    yield from zip(rows.tolist(), columns.tolist(), strict=True)


def _shrunk(own: Look) -> Look:
    return np.stack([cv2.resize(slab, (COARSE, COARSE), interpolation=cv2.INTER_AREA) for slab in own])


T = TypeVar("T", bound=np.generic)


def _view(own: NDArray[T], number: int) -> NDArray[T]:
    """Turned by quarters, and mirrored: eight ways."""
    turned = np.rot90(own, number % 4, (1, 2))
    return np.ascontiguousarray(turned[:, :, ::-1] if number >= 4 else turned)


def _structures(own: Look) -> NDArray[np.float32]:
    """(slabs, pixels) of length 1 each, or 0 of a slab without any structure: products are correlations."""
    scale = own.shape[-1] / SIDE
    found = []
    for slab in own.astype(np.float32):
        fine = slab - cv2.GaussianBlur(slab, (0, 0), 3 * scale)
        contrast = np.sqrt(cv2.GaussianBlur(fine * fine, (0, 0), 6 * scale))
        even = fine / (contrast + 2)
        even -= even.mean()
        length = float(np.linalg.norm(even))
        found.append((even / length if length > 1e-3 else np.zeros_like(even)).ravel())
    return np.array(found, np.float32)


# The likely ones, place by place --------------------------------------------------------------------------------------


def is_same(first: Look, second: Look) -> bool:
    """Whether two volumes that are alike show the same at nearly every place of the slabs that fit best."""
    own, other = _structures(first), _structures(second).reshape(second.shape)
    fits = [own @ _view(other, number).reshape(len(second), -1).T for number in range(_VIEWS)]
    scores = [max(np.median(fit.max(axis=1)), np.median(fit.max(axis=0))) for fit in fits]
    number = int(np.argmax(scores))
    view, fit = _view(second, number), fits[number]
    if np.median(fit.max(axis=1)) >= np.median(fit.max(axis=0)):
        pairs = list(enumerate(fit.argmax(axis=1).tolist()))
    else:
        pairs = [(row, column) for column, row in enumerate(fit.argmax(axis=0).tolist())]
    pairs.sort(key=lambda pair: -fit[pair])  # those without a partner, where slices are cut off, are last
    shares = [_other(first[row], view[column]) for row, column in pairs[: (len(pairs) + 1) // 2]]
    known = [share for share in shares if share is not None]
    return len(known) > len(shares) / 2 and float(np.median(known)) <= MOST_OTHER


def _other(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> float | None:
    """Of the places where both slabs have something to see, the share where it is not the same; None without any."""
    a, b = first.astype(np.float32), second.astype(np.float32)

    def around(values: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray(cv2.blur(values, (8, 8)))

    mean_a, mean_b = around(a), around(b)
    of_a, of_b = around(a * a) - mean_a * mean_a, around(b * b) - mean_b * mean_b
    seen = (of_a > _LEAST_VARIANCE) & (of_b > _LEAST_VARIANCE)
    if seen.mean() < _LEAST_PLACES:
        return None
    correlation = (around(a * b) - mean_a * mean_b) / np.sqrt(np.maximum(of_a * of_b, 1e-6))
    return float((correlation[seen] < SAME_HERE).mean())
