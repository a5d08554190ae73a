"""Masks by exported files: what `ensemble.Segmenter` does with networks, without torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwkvctl.base.ahead import ahead
from rwkvctl.base.errors import UserError
from rwkvctl.base.on_disk import release
from rwkvctl.data.images import files as image_files
from rwkvctl.models import onnx_volumes
from rwkvctl.models.bring import brought
from rwkvctl.models.onnx_certainty import Certainty
from rwkvctl.models.onnx_model import Runs
from rwkvctl.models.onnx_volumes import enlarged
from rwkvctl.models.segmenting import (
    Options,
    Segmented,
    Views,
    Volume,
    check_alike,
    check_square,
    check_values,
    check_volume,
    float16_in_memory,
    is_volume,
    not_seen,
    number_of_classes,
)
from rwkvctl.models.windows import Counted, count

AT_ONCE = 8
"""Slices of a volume that are given to a file at once, or fewer where their probabilities are large."""
HELD = 2**25
"""Probabilities that are held at once, as in `inference`."""

Floats = NDArray[np.float32]
Piece = tuple[NDArray[np.uint8], Floats]


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
        self.of_volumes = [model.info for model in self.models if model.info.volumes is not None]
        if self.of_volumes and len(self.of_volumes) < len(self.models):
            raise UserError(
                "exported files of slices and of volumes are no ensemble; give the models they were made of"
            )
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
        for info in self.of_volumes:
            check_volume(info, image, spacing)
        of_slices = is_volume(self.info, image)
        slices = image if of_slices else image[...][None]
        classes, native = number_of_classes(self.info), slices.shape[1:3]
        likely = kept((classes, len(slices), *native)) if self.options.probabilities else None
        mask, certainty = np.empty((len(slices), *native), np.uint8), Certainty(classes)
        cut = list(parts(len(slices), classes, native))
        pieces = self.by_windows(slices, spacing, cut, seen) if self.of_volumes else self.by_slices(slices, cut, seen)
        for part, (own, mean) in zip(cut, pieces, strict=True):
            mask[part] = own
            if likely is not None:
                likely[:, part] = mean.swapaxes(0, 1).astype(np.float16)
                release(likely)
            certainty.see(mean, own)
        found = Segmented(mask, likely, certainty.result())
        if not of_slices:
            found = Segmented(mask[0], None if likely is None else likely[:, 0], found.sureness)
        return found._replace(mask=self.options.clean_up(found.mask))

    def by_slices(self, slices: Volume, cut: Sequence[slice], seen: Callable[[int], None]) -> Iterator[Piece]:
        """Masks (N, H, W) and probabilities (N, classes, H, W) of some slices after the other."""
        for _part, some in ahead(slices.__getitem__, cut):
            check_values(some)
            if self.plain:
                mask, logits = self.models[0].run(some)
                yield mask, likelihood(logits, some.shape[1:3], self.info.temperature)
            else:
                mean = self.mean_probabilities(some)
                yield decide(mean, self.options.thresholds), mean
            seen(len(some))

    def by_windows(
        self, volume: Volume, spacing: Sequence[float] | None, cut: Sequence[slice], seen: Callable[[int], None]
    ) -> Iterator[Piece]:
        """The same by networks over three axes."""
        networks = [(model.info, model.info.volumes, self.in_views(model)) for model in self.models]
        own = [volumes for _, volumes, _ in networks if volumes is not None]
        small = brought(own, volume, spacing, onnx_volumes.resized)
        windows = sum(count(each.shape[1:], one.patch, one.overlap) for each, one in zip(small, own, strict=True))
        counted = Counted(windows, len(volume), seen)
        along = [
            onnx_volumes.logits_of(network, one, each, volume.shape[:3], cut, counted)
            for (_, _, network), one, each in zip(networks, own, small, strict=True)
        ]
        for found in zip(*along, strict=True):
            each = [
                probabilities_of(logits / np.float32(info.temperature))
                for logits, (info, _, _) in zip(found, networks, strict=True)
            ]
            mean = sum(each[1:], start=each[0]) / np.float32(len(each))
            yield best_of(found[0]) if self.plain else decide(mean, self.options.thresholds), mean

    def in_views(self, model: Runs) -> Callable[[Floats], Floats]:
        """From windows (B, C, D, H, W) to the mean of the logits of the views that are asked for."""

        def network(x: Floats) -> Floats:
            every = [back(model.patches(there(x))) for there, back in views_of_windows(self.options.tta)]
            return np.asarray(sum(every[1:], start=every[0]) / np.float32(len(every)), np.float32)

        return network

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


def views_of_windows(views: Views) -> Iterator[Way]:
    """To each view of windows (B, C, D, H, W), and from its map (B, classes, D, H, W) back."""
    if views == "rotations":
        for turns in range(4):
            yield lambda x, k=turns: np.rot90(x, k, (3, 4)), lambda y, k=turns: np.rot90(y, -k, (3, 4))  # type: ignore[misc]
        return
    most = 3 if views == "flips" else 0
    for axes in (some for number in range(most + 1) for some in combinations((4, 3, 2), number)):
        yield lambda x, a=axes: np.flip(x, a), lambda y, a=axes: np.flip(y, a)  # type: ignore[misc]


def best_of(logits: Floats) -> NDArray[np.uint8]:
    """uint8 (N, H, W), see `inference.best_class`."""
    return (logits[:, 0] > 0 if logits.shape[1] == 1 else logits.argmax(axis=1)).astype(np.uint8)


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
