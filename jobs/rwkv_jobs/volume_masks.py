"""Masks of the volumes of a part by networks over three axes, and by others that see their slices beside them, for
their scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rwkv_jobs.case_scores import Predicted
from rwkv_jobs.confidence import Confidence
from rwkv_jobs.networks import Networks, Size, log_mean
from rwkv_jobs.worker import Worker, autocast
from rwkvctl.base.ahead import ahead
from rwkvctl.data.feed.cases import Place, read_case
from rwkvctl.data.feed.model_input import to_input
from rwkvctl.data.feed.resample import Shape
from rwkvctl.data.store.reader import Reader
from rwkvctl.launch.heartbeat import mark
from rwkvctl.models import inference, volumes
from rwkvctl.models.memory import Memory
from rwkvctl.models.volumes import Seen
from rwkvctl.models.windows import Counted

Run = Callable[[Tensor], Tensor]
"""From images or windows to logits."""


@dataclass(frozen=True)
class SeenInSlices:
    """A network that sees the slices of a volume, each by itself at the size of its images."""

    network: Run
    size: Size
    memory: Memory
    model: nn.Module

    @torch.inference_mode()
    def logits(self, volume: NDArray[Any], parts: Sequence[slice]) -> Iterator[Tensor]:
        """float32 (B, classes, H, W) of some slices after the other, of a volume (D, H, W[, C]), at their own size."""
        size = (self.size, self.size) if isinstance(self.size, int) else self.size
        for slices in map(volume.__getitem__, parts):
            inference.check_values(slices)
            native = slices.shape[1], slices.shape[2]
            resized = torch.from_numpy(inference.resize_batch(slices, size))
            found = torch.cat(self.memory.each(self.model, resized, self.network))
            yield inference.at_native_size(found.float(), native)


class Brought(NamedTuple):
    """A case as it is, and at the spacings of the networks over three axes that see it, None of the others."""

    image: NDArray[Any]
    native: Shape
    seen: list[Seen | SeenInSlices]
    temperatures: list[float]
    volumes: list[NDArray[np.float32] | None]


class VolumeMasks:
    """What segments the volumes of a reader, the next one being resampled meanwhile."""

    def __init__(self, networks: Networks, reader: Reader, me: Worker, precision: str, classes: int):
        self.networks, self.reader, self.classes = networks, reader, classes
        self.seen = [seen_by(networks, number, me, precision) for number in range(len(networks.networks))]

    def each(self, confidence: Confidence | None) -> Iterator[Predicted]:
        """The row of every case and its mask (D, H, W)."""
        for row, case in ahead(self.bring, range(len(self.reader))):
            mark("evaluation")
            yield row, self.mask(row, case, confidence)

    def bring(self, row: int) -> Brought:
        """A case as the networks take it; UserError for what is no volume, or lacks a spacing that is needed."""
        case = read_case(self.reader, row)
        own = self.networks.of_case(case.key)
        seen = [self.seen[number] for number in own]
        over_three = [each for each in seen if isinstance(each, Seen)]
        volumes.check_case(case, [each.volumes for each in over_three])
        native = case.mask.shape[0], case.mask.shape[1], case.mask.shape[2]
        temperatures = [self.networks.temperatures[number] for number in own]
        brought = iter(volumes.brought(over_three, case.image, case.spacing_mm))
        small = [next(brought) if isinstance(each, Seen) else None for each in seen]
        return Brought(case.image, native, seen, temperatures, small)

    @torch.inference_mode()
    def mask(self, row: int, case: Brought, confidence: Confidence | None) -> inference.Mask:
        """The best class by the mean of the probabilities of its networks."""
        mask = np.empty(case.native, np.uint8)
        parts = list(inference.chunks(case.native[0], self.classes, case.native[1:]))
        each: list[Iterator[Tensor]] = []
        for seen, small in zip(case.seen, case.volumes, strict=True):
            if isinstance(seen, SeenInSlices):
                each.append(seen.logits(case.image, parts))
            else:
                assert small is not None, "brought above"
                each.append(seen.logits(small, case.native, parts, Counted(seen.count(small), case.native[0], alive)))
        for part, *found in zip(parts, *each, strict=True):
            logits = found[0] if len(found) == 1 else log_mean(found, case.temperatures)
            best = inference.best_class(logits)
            if confidence is not None:
                confidence.see([Place(row, z, *case.native) for z in range(case.native[0])[part]], logits, best)
            mask[part] = best.cpu().numpy()
        return mask


def seen_by(networks: Networks, number: int, me: Worker, precision: str) -> Seen | SeenInSlices:
    """How one of some networks sees volumes, under the autocast of a precision."""
    network, own, size = networks.networks[number], networks.volumes[number], networks.sizes[number]

    def run(x: Tensor) -> Tensor:
        with autocast(precision, me.device):
            found: Tensor = network(x if own else to_input(x, volumes.device_of(network)))
        return found

    if own is not None:
        return Seen(network, own, Memory.of(network, own.patch), run)
    assert size is not None, "asked for of models that see slices beside volumes"
    return SeenInSlices(run, size, Memory.of(network, size), network)


def alive(_: int) -> None:
    mark("evaluation")
