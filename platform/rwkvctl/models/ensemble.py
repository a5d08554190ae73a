"""Several models, and several views of an image, as one network: the mean of their probabilities at native size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rwkvctl.base.ahead import ahead
from rwkvctl.base.on_disk import release
from rwkvctl.models import inference, tiles, volumes
from rwkvctl.models.bring import Spacing
from rwkvctl.models.bundle import BundleInfo
from rwkvctl.models.certainty import Certainty, probabilities_of
from rwkvctl.models.memory import Memory
from rwkvctl.models.segmenting import (
    Options,
    Segmented,
    Views,
    check_alike,
    check_square,
    check_volume,
    float16_in_memory,
    is_volume,
    number_of_classes,
    size_seen,
)
from rwkvctl.models.windows import Counted

AXES = (-2, -1)
FLIPPED, FLIPPED_IN_VOLUMES = (-1, -2), (-1, -2, -3)


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
        self.memory = [Memory.of(member.model, size_seen(member.info)) for member in self.members]
        self.of_volumes = [member.info for member in self.members if member.info.volumes is not None]
        check_alike([member.info for member in self.members])
        if options.tile is not None:
            tiles.check_sees_images(self.of_volumes)
            tiles.check_installed()
        if options.tta == "rotations":
            check_square([member.info for member in self.members])
        self.plain = len(self.members) == 1 and options.only_best_class

    def segment(
        self,
        image: inference.Volume,
        *,
        spacing: Spacing | None = None,
        seen: Callable[[int], None] = inference.not_seen,
        kept: Callable[[tuple[int, ...]], NDArray[np.float16]] = float16_in_memory,
    ) -> Segmented:
        """Of uint8 (H, W, 3), or float32 (H, W[, C]) or (D, H, W[, C]).

        spacing: mm along z, y, x of a volume, which networks over three axes need.
        seen: is told how many slices were segmented, each time.
        kept: makes the array that is filled with the probabilities (classes, D, H, W), in memory or elsewhere.
        """
        for info in self.of_volumes:
            check_volume(info, image, spacing)
        if self.plain:  # the best of the resized logits needs no probabilities
            certainty, temperature = Certainty(), self.info.temperature

            def watch(first: int, logits: Tensor, masks: Tensor) -> None:
                for own, one in zip(logits.split(1), masks.split(1), strict=True):  # never all of them at once
                    certainty.see(probabilities_of(own.float(), temperature), one)

            if self.of_volumes:
                network = self.over_three_axes(*self.members[0], self.memory[0])
                mask = network.mask(image, spacing, number_of_classes(self.info), seen, watch)
            else:
                mask = inference.segment(*self.members[0], image, self.memory[0], seen, watch)
            found = Segmented(mask, sureness=certainty.result())
        else:
            found = self.by_probabilities(image, spacing, seen, kept)
        return found._replace(mask=self.options.clean_up(found.mask))

    def by_probabilities(
        self,
        image: inference.Volume,
        spacing: Spacing | None,
        seen: Callable[[int], None],
        made: Callable[[tuple[int, ...]], NDArray[np.float16]],
    ) -> Segmented:
        of_slices = is_volume(self.info, image)
        slices = image if of_slices else image[...][None]
        classes, native = number_of_classes(self.info), slices.shape[1:3]
        kept = made((classes, len(slices), *native)) if self.options.probabilities else None
        mask, certainty = np.empty((len(slices), *native), np.uint8), Certainty()
        parts = list(inference.chunks(len(slices), classes, native))
        means = self.means_of_volume if self.of_volumes else self.means_of_slices
        for part, mean in zip(parts, means(slices, spacing, parts, seen), strict=True):
            decided = decide(mean, self.options.thresholds)
            certainty.see(mean, decided)
            mask[part] = decided.cpu().numpy()
            if kept is not None:
                kept[:, part] = mean.movedim(0, 1).cpu().numpy().astype(np.float16)
                release(kept)
        if of_slices:
            return Segmented(mask, kept, certainty.result())
        return Segmented(mask[0], None if kept is None else kept[:, 0], certainty.result())

    def means_of_slices(
        self, slices: inference.Volume, _: Spacing | None, parts: Sequence[slice], seen: Callable[[int], None]
    ) -> Iterator[Tensor]:
        """Mean probabilities (B, classes, H, W) of some slices after the other."""
        for _part, some in ahead(slices.__getitem__, parts):
            inference.check_values(some)
            yield self.mean_probabilities(some)
            seen(len(some))

    @torch.inference_mode()
    def means_of_volume(
        self, volume: inference.Volume, spacing: Spacing | None, parts: Sequence[slice], seen: Callable[[int], None]
    ) -> Iterator[Tensor]:
        """The same where networks over three axes are among the models; the others see its slices."""
        every = list(zip(self.members, self.memory, strict=True))
        over_three = [self.over_three_axes(*own, memory) for own, memory in every if own.info.volumes is not None]
        small = volumes.brought(over_three, volume, spacing)
        windows = sum(network.count(own) for network, own in zip(over_three, small, strict=True))
        counted = Counted(windows, len(volume), seen)
        each: list[Iterator[Tensor]] = [
            map(partial(self.of_member, own, memory), map(volume.__getitem__, parts))
            for own, memory in every
            if own.info.volumes is None
        ]
        for info, network, brought in zip(self.of_volumes, over_three, small, strict=True):
            logits = network.logits(brought, volume.shape[:3], parts, counted)
            each.append(map(partial(probabilities_of, temperature=info.temperature), logits))
        for found in zip(*each, strict=True):
            total = found[0]
            for other in found[1:]:
                total = total.add_(other.to(total.device))
            yield total / len(self.members)

    def over_three_axes(self, model: nn.Module, info: BundleInfo, memory: Memory) -> volumes.Seen:
        """A member that sees volumes, each window in the views that are asked for: the mean of their logits."""
        assert info.volumes is not None

        def of_views(x: Tensor) -> Tensor:
            total, views = torch.zeros(()), 0
            for there, back in ways(self.options.tta, FLIPPED_IN_VOLUMES):
                found = back(model(there(x)).float())
                total = found if views == 0 else total.add_(found)
                views += 1
            return total.div_(views)

        return volumes.Seen(model, info.volumes, memory, model if self.options.tta == "none" else of_views)

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


def ways(views: Views, axes: tuple[int, ...] = FLIPPED) -> Iterator[Way]:
    """To each view of a batch (B, C, H, W) or (B, C, D, H, W), and from its map back; flips are of `axes`."""
    if views == "rotations":
        for turns in range(4):
            yield lambda x, k=turns: torch.rot90(x, k, AXES), lambda x, k=turns: torch.rot90(x, -k, AXES)  # type: ignore[misc]
        return
    most = len(axes) if views == "flips" else 0
    for flipped in (some for count in range(most + 1) for some in combinations(axes, count)):
        yield lambda x, a=flipped: torch.flip(x, a), lambda x, a=flipped: torch.flip(x, a)  # type: ignore[misc]


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
