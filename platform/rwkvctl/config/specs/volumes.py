"""Training on patches of volumes, by a network over three axes."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from rwkvctl.config.specs.base import Spec

Positive = Annotated[int, Field(ge=1)]
Probability = Annotated[float, Field(ge=0, le=1)]
Millimetres = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def is_triple(value: Any, *kinds: type) -> bool:
    """Three positive numbers of these kinds."""
    numbers: list[Any] = list(value) if isinstance(value, list | tuple) else []
    return len(numbers) == 3 and all(type(each) in kinds and 0 < each < math.inf for each in numbers)


def check_patch(value: Any) -> Any:
    """One line for what is neither of the two, in the place of one for each."""
    if value == "auto" or is_triple(value, int):
        return value
    raise ValueError("must be auto, or whole numbers of voxels [depth, height, width]")


def check_spacing(value: Any) -> Any:
    if value in ("auto", "native") or is_triple(value, int, float):
        return value
    raise ValueError("must be auto, native, or millimetres [z, y, x]")


class VolumesSpec(Spec):
    """What a network over three axes is shown of volumes; `auto` is planned from the training cases, as nnU-Net does,
    when the run first starts."""

    patch: Annotated[tuple[Positive, Positive, Positive] | Literal["auto"], BeforeValidator(check_patch)] = "auto"
    """(D, H, W) voxels."""
    patch_voxels: Positive = 2**20
    """The most voxels of a patch that is planned."""
    spacing: Annotated[
        tuple[Millimetres, Millimetres, Millimetres] | Literal["auto", "native"], BeforeValidator(check_spacing)
    ] = "auto"
    """mm along z, y, x that volumes are brought to; native leaves them as they are. auto: the median of the training
    cases, native where they have none."""
    thickness: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """How many times as long voxels are across the slices as within, for data without a spacing; of data that have one
    it means nothing."""
    foreground: Probability = 1 / 3
    """Share of patches around a voxel of a class that is drawn first, so that small ones are seen as often."""
    patches_per_case: Positive = 8
    """Patches of every case in one pass over the training part."""
    overlap: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Of neighbouring patches when a whole volume is segmented, as a share of their sides."""
    depth_flip: Probability = 0.5
    """First and last slice exchanged, beside what `augment` does within slices."""
