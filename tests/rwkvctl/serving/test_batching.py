"""Which slices go through the network together, and that each gets its own logits."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor, nn

from rwkvctl.serving.batching import Batched, exact_sizes
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


def test_sizes_at_which_the_bits_are_others_are_found():
    class Rounding(Sums):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + (1e-7 if len(x) == 4 else 0)

    assert exact_sizes(Sums(), (1, 4, 4), 8) == {1, 2, 4, 8}
    assert exact_sizes(Rounding(), (1, 4, 4), 8) == {1, 2, 8}
    assert exact_sizes(Sums(), (1, 4, 4), 6) == {1, 2, 4, 6}
    assert exact_sizes(Sums(), (1, 4, 4), 1) == {1}
