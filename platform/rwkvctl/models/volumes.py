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
from rwkvctl.data.feed.resample import Shape, resize_image, shape_at
from rwkvctl.models import inference, windows
from rwkvctl.models.bundle import BundleInfo, VolumeInput
from rwkvctl.models.memory import Memory
from rwkvctl.models.segmenting import Volume, check_values, is_volume, not_seen

Spacing = Sequence[float]
"""mm along z, y, x."""
Network = Callable[[Tensor], Tensor]
"""From windows (B, C, D, H, W) to logits (B, classes, D, H, W), on one device."""

AT_ONCE = 1 << 24
"""Voxels that are brought to another size at once."""


def check(info: BundleInfo, image: Volume, spacing: Spacing | None) -> None:
    """UserError, with the way on, for what a network over three axes cannot see."""
    assert info.volumes is not None
    check_form(info, image)
    if reason := lacks_spacing(info.volumes, spacing):
        raise UserError(f"{reason}: give a scan that has one (NIfTI, NRRD, MHA, DICOM)")


def check_case(case: Case, networks: Iterable[VolumeInput]) -> None:
    """The same for a case of a data set, whose channels are known to be the model's."""
    if case.mask.ndim != 3:
        raise UserError(f"{case.key}: is an image, and the model takes whole volumes; give other --data")
    for own in networks:
        if reason := lacks_spacing(own, case.spacing_mm):
            raise UserError(f"{case.key}: {reason}; prepare the data from files that have one (NIfTI, DICOM)")


def lacks_spacing(own: VolumeInput, spacing: Spacing | None) -> str:
    """What is wrong where a volume has none and a network needs it; "" where nothing is."""
    if spacing is not None or own.spacing is None:
        return ""
    return f"has no spacing, and the model takes volumes {own.spacing_in_words}"


def check_form(info: BundleInfo, image: Volume) -> None:
    several = f", {info.channels}" if info.channels > 1 else ""
    if not is_volume(info, image) or image.dtype != np.float32 or image.shape[3:] != ((info.channels,) * bool(several)):
        raise UserError(
            f"is {image.dtype} {tuple(image.shape)}, and the model takes whole volumes, (D, H, W{several}): give a scan"
        )
    if 0 in image.shape:
        raise UserError(f"has no voxels {tuple(image.shape)}")


def at_spacing(volume: Volume, shape: Shape) -> NDArray[np.float32]:
    """(C, *shape) of a volume (D, H, W[, C]), as `resample.resize_image`, some slices and then some rows at a time.

    UserError for values that are not finite."""
    depth, height, width = volume.shape[:3]
    channels = volume.shape[3] if volume.ndim == 4 else 1
    flat = np.empty((channels, depth, *shape[1:]), np.float32)
    at_once = max(1, AT_ONCE // (channels * height * width))
    for start in range(0, depth, at_once):
        part = slice(start, start + at_once)
        slices = volume[part]
        check_values(slices)
        some = torch.from_numpy(np.ascontiguousarray(slices if slices.ndim == 4 else slices[..., None])).movedim(-1, 0)
        flat[:, part] = resize_image(some, (some.shape[1], *shape[1:])).numpy()
    if depth == shape[0]:
        return flat
    found = np.empty((channels, *shape), np.float32)
    at_once = max(1, AT_ONCE // (channels * max(depth, shape[0]) * shape[2]))
    for start in range(0, shape[1], at_once):
        rows = slice(start, start + at_once)
        some = torch.from_numpy(flat[:, :, rows])
        found[:, :, rows] = resize_image(some, (shape[0], *some.shape[2:])).numpy()
    return found


@dataclass
class Counted:
    """Tells of windows as if they were slices: as many as the volume has when all windows of all networks are seen."""

    windows: int
    slices: int
    seen: Callable[[int], None] = not_seen
    done: int = 0

    def more(self, windows: int) -> None:
        before = self.done * self.slices // self.windows
        self.done += windows
        if new := self.done * self.slices // self.windows - before:
            self.seen(new)


def brought(networks: Sequence[Seen], volume: Volume, spacing: Spacing | None) -> list[NDArray[np.float32]]:
    """A volume (D, H, W[, C]) at the spacing of each network, once where these are equal."""
    shapes = [network.shape(volume.shape[:3], spacing) for network in networks]
    found = {shape: at_spacing(volume, shape) for shape in dict.fromkeys(shapes)}
    return [found[shape] for shape in shapes]


@dataclass(frozen=True)
class Seen:
    """A network, and how it sees volumes.

    network: what is run; by default `model` itself. model: its parameters are on the device.
    """

    model: nn.Module
    volumes: VolumeInput
    memory: Memory
    network: Network | None = None

    def shape(self, native: Sequence[int], spacing: Spacing | None) -> Shape:
        """(D, H, W) of a volume at the network's spacing."""
        if self.volumes.spacing is None:
            return native[0], native[1], native[2]
        assert spacing is not None, "checked before"
        return shape_at(native, spacing, self.volumes.spacing)

    def count(self, volume: NDArray[np.float32]) -> int:
        """How many windows a volume (C, D, H, W) at the network's spacing has."""
        return windows.count(volume.shape[1:], self.volumes.patch, self.volumes.overlap)

    @torch.inference_mode()
    def logits(
        self, volume: NDArray[np.float32], native: Sequence[int], parts: Sequence[slice], counted: Counted | None = None
    ) -> Iterator[Tensor]:
        """float32 (B, classes, H, W), at the size `native` (D, H, W), of its slices `parts`, which follow one another.

        volume: (C, D, H, W) at the network's spacing, see `at_spacing`.
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
        small = at_spacing(volume, self.shape(mask.shape, spacing))
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
