"""Too little memory: smaller batches, the CPU, and one line in the end. The shortage is made, the rest is real."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from rwkvctl.base.errors import JobFailedError
from rwkvctl.models.ensemble import Member, Options, Segmenter
from rwkvctl.models.memory import Memory

from .test_ensemble import OneLogit, info

MESSAGES = {
    torch.OutOfMemoryError: "CUDA out of memory. Tried to allocate 2.00 GiB.",
    RuntimeError: "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried to",
}


class Small(OneLogit):
    """Has room for so many images."""

    def __init__(self, room: int, error: type[RuntimeError] = torch.OutOfMemoryError) -> None:
        super().__init__()
        self.room, self.error = room, error
        self.batches: list[int] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.batches.append(len(x))
        if len(x) > self.room:
            raise self.error(MESSAGES[self.error])
        return super().forward(x)


@pytest.mark.parametrize(
    "options", [Options(), Options(tta="flips"), Options(tile=0.5)], ids=["plain", "flips", "tile"]
)
@pytest.mark.parametrize("error", MESSAGES)
def test_fewer_images_at_once_give_the_same_mask(options: Options, error: type[RuntimeError]):
    volume = np.random.default_rng(0).random((19, 20, 18)).astype(np.float32)
    expected = Segmenter([Member(OneLogit().eval(), info(size=16, classes=1))], options).segment(volume).mask
    small = Small(3, error).eval()
    segmenter = Segmenter([Member(small, info(size=16, classes=1))], options)
    segmenter.memory[0].at_once = 8  # as on a GPU
    np.testing.assert_array_equal(segmenter.segment(volume).mask, expected)
    assert 0 < segmenter.memory[0].at_once <= 3
    tried = sum(batch > 3 for batch in small.batches)
    assert tried > 0
    segmenter.segment(volume)
    assert sum(batch > 3 for batch in small.batches) == tried, "what was too much once is not tried again"


def test_no_room_for_one_image_on_the_cpu_is_one_line():
    with pytest.raises(JobFailedError, match=r"^memory does not suffice for one image \(CUDA out of memory"):
        Segmenter([Member(Small(0).eval(), info(size=16, classes=1))]).segment(np.zeros((20, 18), np.float32))


def test_other_errors_are_not_taken_for_a_shortage():
    def work(size: int) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        Memory(8).run(nn.Linear(1, 1), work)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_full_gpu_hands_over_to_the_cpu(capsys: pytest.CaptureFixture[str]):
    volume = np.random.default_rng(0).random((5, 20, 18)).astype(np.float32)

    class OnCpuOnly(OneLogit):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if x.is_cuda:
                raise torch.OutOfMemoryError(MESSAGES[torch.OutOfMemoryError])
            return super().forward(x)

    expected = Segmenter([Member(OneLogit().eval(), info(size=16, classes=1))]).segment(volume).mask
    found = Segmenter([Member(OnCpuOnly().eval().cuda(), info(size=16, classes=1))]).segment(volume).mask
    np.testing.assert_array_equal(found, expected)
    assert capsys.readouterr().err == "the GPU's memory does not suffice for one image: going on on the CPU\n"
