"""Fit the temperature of a model that was trained without, on the validation part of its data."""

from __future__ import annotations

from contextlib import closing

import torch
from torch import nn

from rwkvctl.base.errors import UserError
from rwkvctl.data.feed.cases import Case, SliceLoader, case_reader, read_case
from rwkvctl.data.store.manifest import Manifest
from rwkvctl.data.store.reader import Reader
from rwkvctl.models import volumes
from rwkvctl.models.bundle import BundleInfo, Calibrated
from rwkvctl.models.inference import Mask, masks_of
from rwkvctl.models.memory import Memory
from rwkvctl.models.segmenting import number_of_classes
from rwkvctl.training.calibration import Calibration

SLICES = 4


def calibrate(model: nn.Module, info: BundleInfo, manifest: Manifest, split: str) -> BundleInfo:
    """`info` with a temperature. UserError where the validation part has none.

    model: in evaluation mode.
    """
    device = next(model.parameters()).device
    calibration = Calibration(fit=True, ignore_index=manifest.ignore_index)
    reader = case_reader(manifest, split=split, part="val", rank=0, world_size=1)
    truths = Truths(reader)
    if info.volumes is not None:
        for row in range(len(reader)):
            see_volume(model, info, read_case(reader, row), truths, row, calibration)
        return with_temperature(info, calibration, manifest, split)
    with closing(SliceLoader(reader, image_size=info.image_size, batch=SLICES, workers=0)) as slices:
        for images, places in slices:
            truth = [truths.of(place.row, place.z if place.depth else None) for place in places]

            def see(first: int, logits: torch.Tensor, masks: torch.Tensor, truth: list[Mask] = truth) -> None:
                for own, mask, true in zip(logits, masks, truth[first:], strict=False):
                    calibration.see(own, torch.from_numpy(true).to(device), mask)

            masks_of(model, images, [(place.height, place.width) for place in places], device, see)
    return with_temperature(info, calibration, manifest, split)


def see_volume(
    model: nn.Module, info: BundleInfo, case: Case, truths: Truths, row: int, calibration: Calibration
) -> None:
    """Show the slices of a volume by a network over three axes. UserError for a case that it cannot see."""
    assert info.volumes is not None
    volumes.check_case(case, [info.volumes])
    network = volumes.Seen(model, info.volumes, Memory.of(model, info.volumes.patch))

    def see(first: int, logits: torch.Tensor, masks: torch.Tensor) -> None:
        for z, (own, mask) in enumerate(zip(logits, masks, strict=True), start=first):
            calibration.see(own, torch.from_numpy(truths.of(row, z)).to(own.device), mask)

    network.mask(case.image, case.spacing_mm, number_of_classes(info), watch=see)


def with_temperature(info: BundleInfo, calibration: Calibration, manifest: Manifest, split: str) -> BundleInfo:
    """`info` with what was fitted; UserError where nothing was."""
    found = calibrated(calibration, manifest, split)
    if found is None:
        raise UserError(
            f"split {split}, part val: no temperature fits; its cases have no foreground, or the network is never right"
        )
    return info.model_copy(update={"calibration": found})


def calibrated(calibration: Calibration, manifest: Manifest, split: str) -> Calibrated | None:
    """What a model folder says of a temperature that was fitted on the validation part."""
    fitted = calibration.fitted()
    if fitted is None:
        return None
    return Calibrated(
        temperature=fitted.temperature,
        dataset=manifest.dataset,
        fingerprint=manifest.fingerprint,
        split=split,
        pixels=fitted.pixels,
        ece=fitted.ece,
        likelihood=fitted.likelihood,
    )


class Truths:
    """The truth of slices that come in their order; of a volume it is read once."""

    def __init__(self, reader: Reader):
        self.reader = reader
        self._last: tuple[int, Mask] | None = None

    def of(self, row: int, z: int | None) -> Mask:
        if self._last is None or self._last[0] != row:
            self._last = row, self.reader.mask(row)
        return self._last[1] if z is None else self._last[1][z]
