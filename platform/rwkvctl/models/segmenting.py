"""What every way to make masks has in common, whichever library runs the network. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from rwkvctl.base.errors import UserError
from rwkvctl.models.bundle import BundleInfo, VolumeInput
from rwkvctl.models.clean_up import cleaned_up
from rwkvctl.models.sureness import Sureness

Views = Literal["none", "flips", "rotations"]
TOLD_APART = ("classes", "image_kind", "channels", "channel_names", "intensity", "orientation")
"""What must be the same for models that are asked the same question."""


@dataclass(frozen=True)
class Options:
    """How a mask is made of logits."""

    tta: Views = "none"
    """Test-time augmentation: the mean over the four flips, eight of a network over three axes, or over the four
    rotations of slices by 90 degrees."""
    thresholds: Mapping[int, float] | None = None
    """By class id: below this probability a pixel is not of the class, but of the next most probable that may be."""
    probabilities: bool = False
    """Hand them back, too."""
    largest_component: bool = False
    """Of every class keep its largest connected part alone."""
    fill_holes: bool = False
    """Fill what a class encloses wholly, where it is background."""
    tile: float | None = None
    """Images larger than those of the training are seen through a window of that size, which overlaps by this share of
    its side; null resizes them."""

    @property
    def only_best_class(self) -> bool:
        """Whether the best logit of one model decides, before the mask is cleaned up."""
        return replace(self, largest_component=False, fill_holes=False) == Options()

    def clean_up(self, mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The mask as it is asked for."""
        if not (self.largest_component or self.fill_holes):
            return mask
        return cleaned_up(mask, largest_component=self.largest_component, fill_holes=self.fill_holes)


class Segmented(NamedTuple):
    """A mask, uint8 of the image's shape, and probabilities, float16 (classes, *shape), where they were asked for."""

    mask: NDArray[np.uint8]
    probabilities: NDArray[np.float16] | None = None
    sureness: Sureness | None = None
    """How sure the models are of the mask, before it is cleaned up."""


class Volume(Protocol):
    """An array, or what makes its slices when they are asked for."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    @property
    def ndim(self) -> int: ...

    def __len__(self) -> int: ...

    def __getitem__(self, which: Any, /) -> NDArray[Any]: ...


def not_seen(slices: int) -> None:
    """Nobody counts the slices."""


def float16_in_memory(shape: tuple[int, ...]) -> NDArray[np.float16]:
    return np.empty(shape, np.float16)


class MakesMasks(Protocol):
    """`ensemble.Segmenter` and `onnx_segmenter.OnnxSegmenter`."""

    info: BundleInfo

    def segment(
        self,
        image: Volume,
        *,
        spacing: Sequence[float] | None = None,
        seen: Callable[[int], None] = not_seen,
        kept: Callable[[tuple[int, ...]], NDArray[np.float16]] = float16_in_memory,
    ) -> Segmented:
        """Of uint8 (H, W, 3), or float32 (H, W[, C]) or (D, H, W[, C]) as the model's rule makes them.

        spacing: mm along z, y, x of a volume, which networks over three axes need.
        seen: is told how many slices were segmented, each time.
        kept: makes the array that is filled with the probabilities (classes, D, H, W), in memory or elsewhere.
        """


def check_values(images: NDArray[Any]) -> None:
    if images.dtype != np.uint8 and not np.isfinite(images).all():
        raise UserError("image holds NaN or infinite values: replace them before segmenting it")


def check_volume(info: BundleInfo, image: Volume, spacing: Sequence[float] | None) -> None:
    """UserError, with the way on, for what a network over three axes cannot see."""
    assert info.volumes is not None
    check_volume_form(info, image)
    if reason := lacks_spacing(info.volumes, spacing):
        raise UserError(f"{reason}: give a scan that has one (NIfTI, NRRD, MHA, DICOM)")


def check_volume_form(info: BundleInfo, image: Volume) -> None:
    several = f", {info.channels}" if info.channels > 1 else ""
    if not is_volume(info, image) or image.dtype != np.float32 or image.shape[3:] != ((info.channels,) * bool(several)):
        raise UserError(
            f"is {image.dtype} {tuple(image.shape)}, and the model takes whole volumes, (D, H, W{several}): give a scan"
        )
    if 0 in image.shape:
        raise UserError(f"has no voxels {tuple(image.shape)}")


def lacks_spacing(own: VolumeInput, spacing: Sequence[float] | None) -> str:
    """What is wrong where a volume has none and a network needs it; "" where nothing is."""
    if spacing is not None or own.spacing is None:
        return ""
    return f"has no spacing, and the model takes volumes {own.spacing_in_words}"


def is_volume(info: BundleInfo, image: Volume) -> bool:
    """Whether the first axis of a model's input are slices: of (D, H, W), or (D, H, W, C) of several channels."""
    return info.image_kind == "float" and image.ndim == (4 if info.channels > 1 else 3)


def size_seen(info: BundleInfo) -> int | tuple[int, ...]:
    """Of the images, or of the windows (D, H, W) of volumes, that a network is given."""
    return info.image_size if info.volumes is None else info.volumes.patch


def number_of_classes(info: BundleInfo) -> int:
    """With the background; a network with one logit tells two apart."""
    return max(2, len(info.classes))


def check_alike(infos: Sequence[BundleInfo]) -> None:
    first = infos[0]
    for other in infos[1:]:
        for name in TOLD_APART:
            ours, theirs = getattr(first, name), getattr(other, name)
            if ours != theirs:
                raise UserError(
                    f"these models are no ensemble: {name} is {ours} of the first and {theirs} of another; "
                    "predict with each into a folder of its own"
                )


def check_square(infos: Sequence[BundleInfo]) -> None:
    for info in infos:
        if isinstance(info.image_size, tuple) and len(set(info.image_size)) > 1:
            raise UserError(f"--tta rotations: the model takes images of {info.image_size}, not square ones; use flips")
