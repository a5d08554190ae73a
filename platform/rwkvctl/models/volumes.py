"""Whole volumes by a network over three axes: brought to its spacing, seen through windows, and its logits back at the
volume's own size, some slices at a time.

Held are the volume at the network's spacing, float32, and the maps of as many slices as a window is deep; of the native
size no more than `inference.NATIVE_LOGITS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rwkvctl.base.errors import UserError
from rwkvctl.data.feed.cases import Case
from rwkvctl.data.feed.resample import Shape, resize_image
from rwkvctl.models import bring, inference, windows
from rwkvctl.models.bring import Spacing
from rwkvctl.models.bundle import VolumeInput
from rwkvctl.models.memory import Memory
from rwkvctl.models.segmenting import Volume, lacks_spacing, not_seen
from rwkvctl.models.windows import Counted

Network = Callable[[Tensor], Tensor]
"""From windows (B, C, D, H, W) to logits (B, classes, D, H, W), on one device."""


def check_case(case: Case, networks: Iterable[VolumeInput]) -> None:
    """UserError, with the way on, for a case of a data set that networks over three axes cannot see; its channels are
    known to be the model's."""
    if case.mask.ndim != 3:
        raise UserError(f"{case.key}: is an image, and the model takes whole volumes; give other --data")
    for own in networks:
        if reason := lacks_spacing(own, case.spacing_mm):
            raise UserError(f"{case.key}: {reason}; prepare the data from files that have one (NIfTI, DICOM)")


def resized(volume: NDArray[np.float32], shape: Shape) -> NDArray[np.float32]:
    return resize_image(torch.from_numpy(volume), shape).numpy()


def brought(networks: Sequence[Seen], volume: Volume, spacing: Spacing | None) -> list[NDArray[np.float32]]:
    """A volume (D, H, W[, C]) at the spacing of each network, see `bring.brought`."""
    return bring.brought([network.volumes for network in networks], volume, spacing, resized)


@dataclass(frozen=True)
class Seen:
    """A network, and how it sees volumes.

    network: what is run; by default `model` itself. model: its parameters are on the device.
    """

    model: nn.Module
    volumes: VolumeInput
    memory: Memory
    network: Network | None = None

    def count(self, volume: NDArray[np.float32]) -> int:
        """How many windows a volume (C, D, H, W) at the network's spacing has."""
        return windows.count(volume.shape[1:], self.volumes.patch, self.volumes.overlap)

    @torch.inference_mode()
    def logits(
        self, volume: NDArray[np.float32], native: Sequence[int], parts: Sequence[slice], counted: Counted | None = None
    ) -> Iterator[Tensor]:
        """float32 (B, classes, H, W), at the size `native` (D, H, W), of its slices `parts`, which follow one another.

        volume: (C, D, H, W) at the network's spacing, see `brought`.
        """
        every = windows.across(self._slices(volume, counted), volume.shape[1], native[0])
        for part in parts:
            maps = list(islice(every, len(range(native[0])[part])))
            yield inference.at_native_size(torch.stack(maps), (native[1], native[2]))

    @torch.inference_mode()
    def mask(
        self,
        volume: Volume,
        spacing: Spacing | None,
        classes: int,
        seen: Callable[[int], None] = not_seen,
        watch: inference.Watch | None = None,
    ) -> inference.Mask:
        """uint8 (D, H, W): the class with the largest logit.

        watch: is told the first of some slices, their logits and their masks.
        """
        mask = np.empty(volume.shape[:3], np.uint8)
        parts = list(inference.chunks(len(volume), classes, volume.shape[1:3]))
        [small] = brought([self], volume, spacing)
        along = self.logits(small, mask.shape, parts, Counted(self.count(small), len(mask), seen))
        for part, logits in zip(parts, along, strict=True):
            best = inference.best_class(logits)
            if watch is not None:
                watch(part.start, logits, best)
            mask[part] = best.cpu().numpy()
        return mask

    def _slices(self, volume: NDArray[np.float32], counted: Counted | None) -> Iterator[Tensor]:
        """(classes, H, W) of every slice of a volume (C, D, H, W)."""
        where: list[torch.device] = []

        def at_once(x: Tensor) -> Tensor:
            found = (self.network or self.model)(x.to(device_of(self.model))).float()
            if not where:
                where.append(place_for(found, volume.shape[2:]))
            return found.to(where[0])

        def network(some: NDArray[np.float32]) -> Tensor:
            found = torch.cat(self.memory.each(self.model, torch.from_numpy(some), at_once))
            if counted is not None:
                counted.more(len(some))
            return found

        return windows.slide(
            volume,
            self.volumes.patch,
            self.volumes.overlap,
            network,
            at_once=lambda: self.memory.at_once,
            zeros=lambda shape: torch.zeros(shape, device=where[0]),
            like=lambda array: torch.from_numpy(array).to(where[0]),
        )


def device_of(model: nn.Module) -> torch.device:
    """It may have left a full GPU."""
    return next(model.parameters(), torch.empty(0)).device


def place_for(maps: Tensor, size: Sequence[int]) -> torch.device:
    """Where maps (H, W) of as many slices as windows (B, classes, D, h, w) are deep are put together: on their device,
    or in the machine's memory where they would take more than half of what a GPU has left."""
    if not maps.is_cuda:
        return maps.device
    needed = 4 * (maps.shape[1] + 1) * maps.shape[2] * math.prod(size)
    free, _ = torch.cuda.mem_get_info(maps.device)
    return maps.device if needed <= free // 2 else torch.device("cpu")
