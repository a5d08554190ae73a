"""What every segmentation network asks of the images it is given."""

from __future__ import annotations

from torch import Tensor


def check_images(x: Tensor, *, in_channels: int, divisor: int) -> Tensor:
    """Images (B, in_channels, H, W) as they are; grey ones (B, 1, H, W) repeated where 3 channels are expected.

    Raises:
        ValueError: another number of dimensions or channels, or a height or width that `divisor` does not divide.
    """
    if x.ndim != 4:
        raise ValueError(f"an image batch must be (B, C, H, W), not {tuple(x.shape)}")
    if x.shape[1] != in_channels and (x.shape[1], in_channels) != (1, 3):
        raise ValueError(f"the model takes images of {in_channels} channels, not {x.shape[1]}")
    height, width = x.shape[2:]
    if height % divisor or width % divisor or height == 0 or width == 0:
        fits = f"{_round_up(height, divisor)} x {_round_up(width, divisor)}"
        raise ValueError(f"image size {height} x {width} is not divisible by {divisor}; the next that works is {fits}")
    return x.expand(-1, in_channels, -1, -1)


def _round_up(size: int, divisor: int) -> int:
    return max(divisor, -(-size // divisor) * divisor)
