"""A network on a device whose memory may be too small: fewer images at once, and in the end the CPU."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from rwkvctl.base.errors import JobFailedError

T = TypeVar("T")
ON_GPU, ON_CPU = 16, 8
"""Images that a network takes at once, at most."""
GPU_VOXELS = 1 << 22
"""Of the windows of volumes that a network takes at once on a GPU: two of 128 x 128 x 128."""
CPU_PIXELS = 224 * 224
"""Of the images that a network takes at once on a CPU. More leave its caches: eight images of 224 px take 1.7 times as
long as eight single ones (T, two threads). Of small ones several are worth the calls that they save."""


class Memory:
    """How many images a network takes at once. What was too much once is not tried again."""

    def __init__(self, at_once: int):
        self.at_once = at_once

    @classmethod
    def of(cls, model: nn.Module, size: int | tuple[int, ...]) -> Memory:
        """For the device that a model is on, and images (H, W) or windows (D, H, W) of the size that it sees."""
        if not any(parameter.is_cuda for parameter in model.parameters()):
            return cls(at_once_on_cpu(size))
        if isinstance(size, int) or len(size) == 2:
            return cls(ON_GPU)
        return cls(min(ON_GPU, max(1, GPU_VOXELS // math.prod(size))))

    def run(self, model: nn.Module, work: Callable[[int], T]) -> T:
        """What `work(at_once)` gives, with half as many images each time that memory does not suffice; where it does
        not for one on a GPU, the model goes to the CPU, for good. JobFailedError where it does not there."""
        while True:
            try:
                return work(self.at_once)
            except RuntimeError as error:
                if not is_short_of_memory(error):
                    raise
                reason = str(error).splitlines()[0]
            self._ask_for_less(model, reason)

    def each(self, model: nn.Module, images: Tensor, work: Callable[[Tensor], T]) -> list[T]:
        """What `work` gives of as many images as go at once, one part after the other."""
        found: list[T] = []
        start = 0
        while start < len(images):
            rest = images[start:]
            found.append(self.run(model, lambda size, rest=rest: work(rest[:size])))  # type: ignore[misc]
            start += self.at_once
        return found

    def _ask_for_less(self, model: nn.Module, reason: str) -> None:
        on_gpu = next(model.parameters()).device.type == "cuda"
        if on_gpu:
            torch.cuda.empty_cache()
        if self.at_once > 1:
            self.at_once //= 2
            return
        if not on_gpu:
            raise JobFailedError(f"memory does not suffice for one image ({reason[:150]})")
        print("the GPU's memory does not suffice for one image: going on on the CPU", file=sys.stderr, flush=True)
        model.to("cpu")
        self.at_once = 1


def at_once_on_cpu(size: int | tuple[int, ...]) -> int:
    pixels = size * size if isinstance(size, int) else math.prod(size)
    return min(ON_CPU, max(1, CPU_PIXELS // pixels))


def is_short_of_memory(error: RuntimeError) -> bool:
    """A GPU's allocator has an error of its own; the CPU's says it in words."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
