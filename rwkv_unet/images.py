"""What every segmentation network asks of the images or volumes it is given."""

from __future__ import annotations

from torch import Tensor

KINDS = {2: ("an image", "(B, C, H, W)"), 3: ("a volume", "(B, C, D, H, W)")}
"""By number of spatial axes."""


def check_images(x: Tensor, *, in_channels: int, divisor: int | tuple[int, ...]) -> Tensor:
    """Images (B, in_channels, H, W) as they are; grey ones (B, 1, H, W) repeated where 3 channels are expected.

    A tuple of divisors, one an axis, is for volumes (B, in_channels, D, H, W), whose channels are never repeated.

    Raises:
        ValueError: another number of dimensions or channels, or a size that its divisor does not divide.
    """
    divisors = (divisor, divisor) if isinstance(divisor, int) else divisor
    kind, axes = KINDS[len(divisors)]
    if x.ndim != 2 + len(divisors):
        raise ValueError(f"{kind} batch must be {axes}, not {tuple(x.shape)}")
    repeated = len(divisors) == 2 and (x.shape[1], in_channels) == (1, 3)
    if x.shape[1] != in_channels and not repeated:
        raise ValueError(f"the model takes {kind[2:].strip()}s of {in_channels} channels, not {x.shape[1]}")
    sizes = x.shape[2:]
    if any(size % step or size == 0 for size, step in zip(sizes, divisors, strict=True)):
        fits = " x ".join(str(_round_up(size, step)) for size, step in zip(sizes, divisors, strict=True))
        by = divisors[0] if len(set(divisors)) == 1 else " x ".join(map(str, divisors))
        size = " x ".join(map(str, sizes))
        raise ValueError(f"{kind[2:].strip()} size {size} is not divisible by {by}; the next that works is {fits}")
    return x.expand(-1, in_channels, *sizes)


def _round_up(size: int, divisor: int) -> int:
    return max(divisor, -(-size // divisor) * divisor)
