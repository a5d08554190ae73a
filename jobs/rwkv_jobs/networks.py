"""What turns the slices of cases into masks: one network, several whose probabilities are averaged, or of each case the
one that has not seen it."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from rwkv_unet import fuse_for_inference
from rwkvctl.data.feed.cases import Place
from rwkvctl.data.feed.model_input import to_input
from rwkvctl.data.store.reader import Reader
from rwkvctl.models import bundle, inference, members
from rwkvctl.models.bundle import VolumeInput
from rwkvctl.models.certainty import probabilities_of
from rwkvctl.models.inference import Mask, Watch

Size = int | tuple[int, int]

LEAST = 1e-30
"""Of a mean probability, before its logarithm is taken."""


class Networks:
    """Networks in evaluation mode on one device, with their temperatures.

    Without `member_of` the mean of the probabilities of all at native size decides, each with its temperature, as
    `rwkvctl predict` has it. With it, of each case (by its key) the network of that number alone.
    """

    def __init__(
        self,
        networks: Sequence[nn.Module],
        temperatures: Sequence[float] = (1.0,),
        member_of: Mapping[str, int] | None = None,
        volumes: Sequence[VolumeInput | None] = (),
        sizes: Sequence[Size | None] = (),
    ):
        """volumes: how those over three axes see them; by default none is. sizes: of the images that the others see,
        which are asked for where there are both."""
        self.networks, self.temperatures, self.member_of = list(networks), list(temperatures), member_of
        self.volumes = list(volumes) or [None] * len(self.networks)
        self.sizes = list(sizes) or [None] * len(self.networks)

    def of_case(self, key: str) -> list[int]:
        """The networks that a case is seen by."""
        return list(range(len(self.networks))) if self.member_of is None else [self.member_of[key]]

    def masks(
        self, images: Tensor, places: Sequence[Place], reader: Reader, device: torch.device, watch: Watch | None
    ) -> list[Mask]:
        """Of a batch (B, C, H, W), each at the native size of its place; under the caller's autocast."""
        natives = [(place.height, place.width) for place in places]
        if self.member_of is not None:
            numbers = [self.member_of[reader.key(place.row)] for place in places]
            return self._own(images, natives, numbers, device, watch)
        if len(self.networks) == 1:
            return inference.masks_of(self.networks[0], images, natives, device, watch)
        return self._mean(images, natives, device, watch)

    def _own(
        self,
        images: Tensor,
        natives: Sequence[tuple[int, int]],
        numbers: Sequence[int],
        device: torch.device,
        watch: Watch | None,
    ) -> list[Mask]:
        """Runs of slices of one network: the cases lie in the order of the folds."""
        masks: list[Mask] = []
        for number, group in itertools.groupby(range(len(numbers)), key=numbers.__getitem__):
            rows = list(group)
            seen = None if watch is None else lambda first, x, m, at=rows[0]: watch(at + first, x, m)
            own = slice(rows[0], rows[-1] + 1)
            masks += inference.masks_of(self.networks[number], images[own], natives[own], device, seen)
        return masks

    @torch.inference_mode()
    def _mean(
        self, images: Tensor, natives: Sequence[tuple[int, int]], device: torch.device, watch: Watch | None
    ) -> list[Mask]:
        batch = to_input(images, device)
        logits = [network(batch).float() for network in self.networks]

        def at_native(part: slice, native: tuple[int, int]) -> Tensor:
            return log_mean([inference.at_native_size(own[part], native) for own in logits], self.temperatures)

        return inference.best_of(at_native, max(2, logits[0].shape[1]), natives, watch)


def log_mean(logits: Sequence[Tensor], temperatures: Sequence[float]) -> Tensor:
    """Logarithms of the mean probabilities of several networks: logits that give them."""
    total: Tensor | None = None
    for own, temperature in zip(logits, temperatures, strict=True):
        found = probabilities_of(own, temperature)
        total = found if total is None else total.add_(found.to(total.device))
    assert total is not None
    return total.div_(len(logits)).clamp_min_(LEAST).log_()


def load(folder: Path, device: torch.device, member_of: Mapping[str, int] | None = None) -> Networks:
    """The network of a model folder, or those of an ensemble."""
    found = [bundle.load(member, device=device) for member in members.folders(folder)]
    networks = [fuse_for_inference(network) for network, _ in found]
    infos = [info for _, info in found]
    temperatures, sizes = [info.temperature for info in infos], [info.image_size for info in infos]
    return Networks(networks, temperatures, member_of, [info.volumes for info in infos], sizes)
