"""Masks by exported files: what `ensemble.Segmenter` does with networks, without torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from rwkvctl.base.ahead import ahead
from rwkvctl.base.on_disk import release
from rwkvctl.data.images import files as image_files
from rwkvctl.models.onnx_certainty import Certainty
from rwkvctl.models.onnx_model import Runs
from rwkvctl.models.segmenting import (
    Options,
    Segmented,
    Views,
    Volume,
    check_alike,
    check_square,
    check_values,
    float16_in_memory,
    is_volume,
    not_seen,
    number_of_classes,
)

AT_ONCE = 8
"""Slices of a volume that are given to a file at once, or fewer where their probabilities are large."""
HELD = 2**25
"""Probabilities that are held at once, as in `inference`."""

Floats = NDArray[np.float32]


class OnnxSegmenter:
    """From an image, a slice or a volume to its mask at its own resolution.

    UserError for models of different classes, kinds of image or rules; for rotations of images that are not square.
    """

    def __init__(self, models: Sequence[Runs], options: Options = Options()):
        self.models, self.options = list(models), options
        self.info = self.models[0].info
        assert options.tile is None, "an exported file resizes images itself"
        check_alike([model.info for model in self.models])
        if options.tta == "rotations":
            check_square([model.info for model in self.models])
        self.plain = len(self.models) == 1 and options.only_best_class

    def segment(
        self,
        image: Volume,
        *,
        spacing: Sequence[float] | None = None,
        seen: Callable[[int], None] = not_seen,
        kept: Callable[[tuple[int, ...]], NDArray[np.float16]] = float16_in_memory,
    ) -> Segmented:
        """See `segmenting.MakesMasks`."""
        of_slices = is_volume(self.info, image)
        slices = image if of_slices else image[...][None]
        classes, native = number_of_classes(self.info), slices.shape[1:3]
        likely = kept((classes, len(slices), *native)) if self.options.probabilities else None
        mask, certainty = np.empty((len(slices), *native), np.uint8), Certainty(classes)
        for part, some in ahead(slices.__getitem__, parts(len(slices), classes, native)):
            check_values(some)
            if self.plain:
                mask[part], logits = self.models[0].run(some)
                mean = likelihood(logits, native, self.info.temperature)
            else:
                mean = self.mean_probabilities(some)
                mask[part] = decide(mean, self.options.thresholds)
                if likely is not None:
                    likely[:, part] = mean.swapaxes(0, 1).astype(np.float16)
                    release(likely)
            certainty.see(mean, mask[part])
            seen(len(some))
        found = Segmented(mask, likely, certainty.result())
        if not of_slices:
            found = Segmented(mask[0], None if likely is None else likely[:, 0], found.sureness)
        return found._replace(mask=self.options.clean_up(found.mask))

    def mean_probabilities(self, slices: NDArray[Any]) -> Floats:
        """float32 (N, classes, H, W) of images uint8 (N, H, W, 3) or slices float32 (N, H, W[, C]), at their size."""
        native = slices.shape[1:3]
        total = np.zeros((len(slices), number_of_classes(self.info), *native), np.float32)
        views = 0
        for model in self.models:
            side = model.info.image_size
            size = (side, side) if isinstance(side, int) else side
            # Resized here, so that views are of what the network sees: to that size the file leaves them as they are.
            small = np.stack([image_files.resize(each, size) for each in slices])
            for there, back in ways(self.options.tta):
                total += likelihood(back(model.run(there(small))[1]), native, model.info.temperature)
                views += 1
        total /= views
        return total


def parts(slices: int, classes: int, native: tuple[int, ...]) -> Iterator[slice]:
    at_once = min(AT_ONCE, max(1, HELD // (classes * native[0] * native[1])))
    for start in range(0, slices, at_once):
        yield slice(start, start + at_once)


Way = tuple[Callable[[NDArray[Any]], NDArray[Any]], Callable[[Floats], Floats]]


def ways(views: Views) -> Iterator[Way]:
    """To each view of a batch (N, H, W, ...), and from its map (N, classes, h, w) back."""
    if views == "rotations":
        for turns in range(4):
            yield lambda x, k=turns: np.rot90(x, k, (1, 2)), lambda y, k=turns: np.rot90(y, -k, (2, 3))  # type: ignore[misc]
        return
    for axes in [(), (1,), (0,), (0, 1)] if views == "flips" else [()]:
        there, back = ([axis + first for axis in axes] for first in (1, 2))
        yield lambda x, a=there: np.flip(x, a), lambda y, a=back: np.flip(y, a)  # type: ignore[misc]


def likelihood(logits: Floats, native: tuple[int, ...], temperature: float) -> Floats:
    """(N, classes, H, W) of logits (N, classes, h, w) at the network's size."""
    return probabilities_of(enlarged(np.ascontiguousarray(logits), native) / np.float32(temperature))


def probabilities_of(logits: Floats) -> Floats:
    """(N, classes, h, w); one logit is that of the foreground."""
    if logits.shape[1] == 1:
        foreground = 1 / (1 + np.exp(-logits))
        return np.concatenate([1 - foreground, foreground], axis=1)
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def enlarged(maps: Floats, native: tuple[int, ...]) -> Floats:
    """(N, classes, h, w) at (H, W), bilinear."""
    if maps.shape[2:] == native:
        return maps
    height, width = native
    resize = [[cv2.resize(each, (width, height), interpolation=cv2.INTER_LINEAR) for each in one] for one in maps]
    return np.asarray(resize, np.float32)


def decide(probabilities: Floats, thresholds: Mapping[int, float] | None) -> NDArray[np.uint8]:
    """uint8 (N, H, W), see `ensemble.decide`."""
    if not thresholds:
        return probabilities.argmax(axis=1).astype(np.uint8)
    if probabilities.shape[1] == 2:
        return (probabilities[:, 1] >= thresholds.get(1, 0.5)).astype(np.uint8)
    allowed = probabilities.copy()
    for class_id, least in thresholds.items():
        allowed[:, class_id][probabilities[:, class_id] < least] = -1.0
    return allowed.argmax(axis=1).astype(np.uint8)
