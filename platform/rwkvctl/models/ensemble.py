"""Several models, and several views of an image, as one network: the mean of their probabilities at native size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rwkvctl.base.ahead import ahead
from rwkvctl.base.on_disk import release
from rwkvctl.models import inference, tiles
from rwkvctl.models.bundle import BundleInfo
from rwkvctl.models.certainty import Certainty, probabilities_of
from rwkvctl.models.memory import Memory
from rwkvctl.models.segmenting import (
    Options,
    Segmented,
    Views,
    check_alike,
    check_square,
    float16_in_memory,
    is_volume,
    number_of_classes,
)

AXES = (-2, -1)


class Member(NamedTuple):
    """A network in evaluation mode, and what its folder says of it."""

    model: nn.Module
    info: BundleInfo


class Segmenter:
    """From an image, a slice or a volume to its mask at its own resolution.

    UserError for models of different classes, kinds of image or rules; for rotations of images that are not square.
    """

    def __init__(self, members: Sequence[Member], options: Options = Options()):
        self.members, self.options = list(members), options
        self.info = self.members[0].info
        self.memory = [Memory.of(member.model, member.info.image_size) for member in self.members]
        check_alike([member.info for member in self.members])
        if options.tile is not None:
            tiles.check_installed()
        if options.tta == "rotations":
            check_square([member.info for member in self.members])
        self.plain = len(self.members) == 1 and options.only_best_class

    def segment(
        self,
        image: inference.Volume,
        *,
        seen: Callable[[int], None] = inference.not_seen,
        kept: Callable[[tuple[int, ...]], NDArray[np.float16]] = float16_in_memory,
    ) -> Segmented:
        """Of uint8 (H, W, 3), or float32 (H, W[, C]) or (D, H, W[, C]).

        seen: is told how many slices were segmented, each time.
        kept: makes the array that is filled with the probabilities (classes, D, H, W), in memory or elsewhere.
        """
        if self.plain:  # the best of the resized logits needs no probabilities
            certainty, temperature = Certainty(), self.info.temperature

            def watch(first: int, logits: Tensor, masks: Tensor) -> None:
                for own, one in zip(logits.split(1), masks.split(1), strict=True):  # never all of them at once
                    certainty.see(probabilities_of(own.float(), temperature), one)

            mask = inference.segment(*self.members[0], image, self.memory[0], seen, watch)
            found = Segmented(mask, sureness=certainty.result())
        else:
            found = self.by_probabilities(image, seen, kept)
        return found._replace(mask=self.options.clean_up(found.mask))

    def by_probabilities(
        self,
        image: inference.Volume,
        seen: Callable[[int], None],
        made: Callable[[tuple[int, ...]], NDArray[np.float16]],
    ) -> Segmented:
        of_slices = is_volume(self.info, image)
        slices = image if of_slices else image[...][None]
        classes, native = number_of_classes(self.info), slices.shape[1:3]
        kept = made((classes, len(slices), *native)) if self.options.probabilities else None
        mask, certainty = np.empty((len(slices), *native), np.uint8), Certainty()
        for part, some in ahead(slices.__getitem__, chunks(len(slices), classes, native)):
            inference.check_values(some)
            mean = self.mean_probabilities(some)
            decided = decide(mean, self.options.thresholds)
            certainty.see(mean, decided)
            mask[part] = decided.cpu().numpy()
            if kept is not None:
                kept[:, part] = mean.movedim(0, 1).cpu().numpy().astype(np.float16)
                release(kept)
            seen(len(some))
        if of_slices:
            return Segmented(mask, kept, certainty.result())
        return Segmented(mask[0], None if kept is None else kept[:, 0], certainty.result())

    @torch.inference_mode()
    def mean_probabilities(self, slices: NDArray[Any]) -> Tensor:
        """float32 (B, classes, H, W) of images (B, H, W, 3) or slices (B, H, W[, C]), at their own size.

        Logits are resized and divided by their model's temperature before they become probabilities, so that those of
        one model have the mask that is made without them.
        """
        total: Tensor | None = None
        for member, memory in zip(self.members, self.memory, strict=True):
            found = self.of_member(member, memory, slices)
            total = found if total is None else total.add_(found.to(total.device))
        assert total is not None
        return total / len(self.members)

    def of_member(self, member: Member, memory: Memory, slices: NDArray[Any]) -> Tensor:
        """As `mean_probabilities`, of one network."""
        from rwkvctl.data.feed.model_input import to_input

        model, info = member
        size = info.image_size if isinstance(info.image_size, tuple) else (info.image_size, info.image_size)
        native, overlap = (slices.shape[1], slices.shape[2]), self.options.tile

        def of_views(x: Tensor, resized_to: tuple[int, int] | None = None) -> Tensor:
            total, views = torch.zeros(()), 0
            for there, back in ways(self.options.tta):
                logits = back(model(there(x)).float())
                if resized_to is not None:
                    logits = inference.at_native_size(logits, resized_to)
                found = probabilities_of(logits, info.temperature)
                total = found if views == 0 else total.add_(found)
                views += 1
            return total.div_(views)

        def whole(images: Tensor) -> Tensor:
            return of_views(to_input(images, next(model.parameters()).device), native)

        def tiled(at_once: int, overlap: float) -> Tensor:
            x = to_input(torch.from_numpy(inference.channels_first(slices)), next(model.parameters()).device)
            return tiles.slide(of_views, x, size, overlap, at_once)

        if overlap is not None and tiles.is_larger(native, size):
            return memory.run(model, partial(tiled, overlap=overlap))
        resized = torch.from_numpy(inference.resize_batch(slices, size))
        found = memory.each(model, resized, whole)
        return torch.cat([each.to(found[-1].device) for each in found])


Way = tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]


def ways(views: Views) -> Iterator[Way]:
    """To each view of a batch (B, C, H, W), and from its map back."""
    if views == "rotations":
        for turns in range(4):
            yield lambda x, k=turns: torch.rot90(x, k, AXES), lambda x, k=turns: torch.rot90(x, -k, AXES)  # type: ignore[misc]
        return
    for axes in [(), (-1,), (-2,), AXES] if views == "flips" else [()]:
        yield lambda x, a=axes: torch.flip(x, a), lambda x, a=axes: torch.flip(x, a)  # type: ignore[misc]


def decide(probabilities: Tensor, thresholds: Mapping[int, float] | None) -> Tensor:
    """uint8 (B, H, W): the most probable class; with thresholds, of those that reach theirs, else the background.

    Of two classes the threshold of the foreground decides alone: it may be below one half.
    """
    if not thresholds:
        return inference.best_class(probabilities)
    if probabilities.shape[1] == 2:
        return (probabilities[:, 1] >= thresholds.get(1, 0.5)).to(torch.uint8)
    allowed = probabilities.clone()
    for class_id, least in thresholds.items():
        allowed[:, class_id].masked_fill_(probabilities[:, class_id] < least, -1.0)
    return inference.best_class(allowed)


def chunks(slices: int, classes: int, native: tuple[int, ...]) -> Iterator[slice]:
    """Slices that are held at once: eight, or fewer where they are large."""
    at_once = min(8, max(1, inference.NATIVE_LOGITS // (classes * native[0] * native[1])))
    for start in range(0, slices, at_once):
        yield slice(start, start + at_once)
