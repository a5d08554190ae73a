"""Images larger than those that a network was trained on, seen through a window of that size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rwkvctl.base.errors import UserError
from rwkvctl.models import onnx_model
from rwkvctl.models.bundle import BundleInfo

if TYPE_CHECKING:  # files that were exported are predicted without torch
    from torch import Tensor


def check(models: Sequence[Path]) -> None:
    """UserError for models that resize images by themselves, and without MONAI."""
    for model in models:
        if onnx_model.is_file(model):
            raise UserError(f"--tile: {model} resizes images itself; give the run or the model that it was made of")
    check_installed()


def check_sees_images(of_volumes: Sequence[BundleInfo]) -> None:
    """UserError where some models see volumes."""
    if of_volumes:
        raise UserError("--tile: the model sees volumes, always through a window; leave it out")


def check_installed() -> None:
    try:
        import monai.inferers  # noqa: F401
    except ModuleNotFoundError:
        raise UserError("--tile needs MONAI; install it with: pip install 'rwkvctl[tiles]'") from None


def is_larger(native: tuple[int, ...], window: tuple[int, int]) -> bool:
    return native[0] > window[0] or native[1] > window[1]


def slide(
    probabilities: Callable[[Tensor], Tensor], images: Tensor, window: tuple[int, int], overlap: float, at_once: int
) -> Tensor:
    """(B, classes, H, W) of images (B, C, H, W) by a network that sees windows, `at_once` of them.

    Windows overlap by a share of their side and weigh by a Gaussian of an eighth of it, as nnU-Net's do. A side that is
    shorter than the window's is continued by its border. Where the GPU has no room for the whole, MONAI keeps it in
    the machine's memory.
    """
    from monai.inferers import SlidingWindowInfererAdapt
    from torch import Tensor

    inferer = SlidingWindowInfererAdapt(
        roi_size=window, sw_batch_size=at_once, overlap=overlap, mode="gaussian", padding_mode="replicate"
    )
    found = inferer(images, probabilities)
    assert isinstance(found, Tensor)
    return found
