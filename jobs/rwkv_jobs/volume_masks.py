"""Masks of the volumes of a part by networks over three axes, for their scores."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rwkv_jobs.case_scores import Predicted
from rwkv_jobs.confidence import Confidence
from rwkv_jobs.networks import Networks, log_mean
from rwkv_jobs.worker import Worker, autocast
from rwkvctl.base.ahead import ahead
from rwkvctl.base.errors import UserError
from rwkvctl.data.feed.cases import Place, read_case
from rwkvctl.data.feed.resample import Shape
from rwkvctl.data.store.reader import Reader
from rwkvctl.launch.heartbeat import mark
from rwkvctl.models import inference, volumes
from rwkvctl.models.bundle import VolumeInput
from rwkvctl.models.memory import Memory
from rwkvctl.models.volumes import Seen
from rwkvctl.models.windows import Counted


class Brought(NamedTuple):
    """A case at the spacings of the networks that see it."""

    native: Shape
    seen: list[Seen]
    temperatures: list[float]
    volumes: list[NDArray[np.float32]]


class VolumeMasks:
    """What segments the volumes of a reader, the next one being resampled meanwhile."""

    def __init__(self, networks: Networks, reader: Reader, me: Worker, precision: str, classes: int):
        self.networks, self.reader, self.classes = networks, reader, classes
        every = zip(networks.networks, networks.volumes, strict=True)
        self.seen = [seen_by(network, own, me, precision) for network, own in every]

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
        volumes.check_case(case, [each.volumes for each in seen])
        native = case.mask.shape[0], case.mask.shape[1], case.mask.shape[2]
        temperatures = [self.networks.temperatures[number] for number in own]
        return Brought(native, seen, temperatures, volumes.brought(seen, case.image, case.spacing_mm))

    @torch.inference_mode()
    def mask(self, row: int, case: Brought, confidence: Confidence | None) -> inference.Mask:
        """The best class by the mean of the probabilities of its networks."""
        mask = np.empty(case.native, np.uint8)
        parts = list(inference.chunks(case.native[0], self.classes, case.native[1:]))
        each = [
            seen.logits(small, case.native, parts, Counted(seen.count(small), case.native[0], alive))
            for seen, small in zip(case.seen, case.volumes, strict=True)
        ]
        for part, *found in zip(parts, *each, strict=True):
            logits = found[0] if len(found) == 1 else log_mean(found, case.temperatures)
            best = inference.best_class(logits)
            if confidence is not None:
                confidence.see([Place(row, z, *case.native) for z in range(case.native[0])[part]], logits, best)
            mask[part] = best.cpu().numpy()
        return mask


def seen_by(network: nn.Module, own: VolumeInput | None, me: Worker, precision: str) -> Seen:
    """How a network sees volumes, under the autocast of a precision."""
    if own is None:
        raise UserError("an ensemble of networks of slices and of volumes: score each by itself")

    def run(windows: Tensor) -> Tensor:
        with autocast(precision, me.device):
            found: Tensor = network(windows)
        return found

    return Seen(network, own, Memory.of(network, own.patch), run)


def alive(_: int) -> None:
    mark("evaluation")
