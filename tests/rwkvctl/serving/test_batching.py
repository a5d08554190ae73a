"""Which slices go through the network together, and that each gets its own logits."""

from __future__ import annotations

import threading
import time

import pytest
import torch
from torch import Tensor, nn

from rwkvctl.serving.batching import Batched, useful_sizes
from rwkvctl.serving.refusals import Late

from .conftest import until


class Sums(nn.Module):
    """Exact in whole numbers, whatever the batch; notes its batches."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(len(x))
        if (x < 0).any():
            raise ValueError("negative")
        return x.sum(dim=1, keepdim=True)


def asked(network: Batched, parts: list[Tensor]) -> list[Tensor | Exception]:
    """What each part gets when all have come before the first is looked at, in this order."""
    found: dict[int, Tensor | Exception] = {}

    def ask(place: int) -> None:
        try:
            found[place] = network(parts[place])
        except Exception as error:
            found[place] = error

    threads = [threading.Thread(target=ask, args=(place,)) for place in range(len(parts))]
    with network._running:
        for place, thread in enumerate(threads):
            thread.start()
            until(lambda place=place: len(network._waiting) > place)
    for thread in threads:
        thread.join()
    return [found[place] for place in range(len(parts))]


@pytest.mark.parametrize(
    ("sizes", "parts", "batches"),
    [
        ({1, 2, 4, 8}, [1] * 8, [8]),
        ({1, 2, 4}, [1] * 7, [4, 2, 1]),
        ({1}, [1] * 3, [1, 1, 1]),
        ({1, 8}, [1] * 5, [1] * 5),
        ({1, 2, 4, 8}, [8, 8], [8, 8]),
        ({1, 2, 4, 8}, [3, 3, 3], [3, 3, 3]),
        ({1, 2, 4, 8}, [4, 1, 1, 2], [8]),
    ],
)
def test_parts_are_put_together_to_sizes_that_change_nothing(sizes: set[int], parts: list[int], batches: list[int]):
    network = Batched(Sums(), sizes)
    given = [torch.randint(0, 99, (size, 2, 3, 3)).float() for size in parts]
    for own, found in zip(given, asked(network, given), strict=True):
        assert isinstance(found, Tensor)
        assert torch.equal(found, own.sum(dim=1, keepdim=True))
    assert sorted(network.network.seen, reverse=True) == batches
    assert (network.batches, network.slices) == (len(batches), sum(parts))


def test_slices_of_other_sizes_and_a_bad_one_do_not_disturb_others():
    network = Batched(Sums(), {1, 2, 3, 4})
    good, other, bad = torch.ones(1, 2, 3, 3), torch.ones(1, 2, 5, 5), -torch.ones(1, 2, 3, 3)
    first, second, third, fourth = asked(network, [good, other, bad, good])
    assert isinstance(third, ValueError)
    for found, own in ((first, good), (second, other), (fourth, good)):
        assert torch.equal(found, own.sum(dim=1, keepdim=True))  # type: ignore[arg-type]


def test_who_is_no_longer_wanted_leaves_the_line():
    network = Batched(Sums(), {1, 2})

    def late() -> None:
        raise Late(1)

    with network.checked(late), pytest.raises(Late):
        network(torch.ones(1, 2, 3, 3))
    assert network._waiting == []
    assert network.network.seen == []
    network(torch.ones(1, 2, 3, 3))


class Slow(Sums):
    """Takes so long a call, and more for large batches."""

    def __init__(self, call: float, square: float, odd: int = 0) -> None:
        super().__init__()
        self.call, self.square, self.odd = call, square, odd

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(self.call + self.square * len(x) ** 2)
        return super().forward(x) + (1 if len(x) == self.odd else 0)


def test_sizes_that_pay_and_change_no_bit_are_found():
    def found(network: nn.Module, most: int, *, same_bits: bool = True) -> set[int]:
        return set(useful_sizes(network, (1, 4, 4), most, same_bits=same_bits))

    assert found(Slow(0.02, 0), 8) == {1, 2, 4, 8}
    assert found(Slow(0.02, 0), 6) == {1, 2, 4, 6}
    assert found(Slow(0.02, 0), 1) == {1}
    assert found(Slow(0.02, 0, odd=4), 8) == {1, 2, 8}
    assert found(Slow(0.02, 0, odd=4), 8, same_bits=False) == {1, 2, 4, 8}
    assert found(Slow(0, 0.01), 4) == {1}
