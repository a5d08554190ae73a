"""Which samples a rank trains on at which step: a function of (data, seed, epoch) alone."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from rwkvctl.base.errors import UserError
from rwkvctl.data.feed import order


@dataclass(frozen=True)
class Schedule:
    """Which samples this rank trains on at which step: the whole of resuming, without any file or tensor.

    `shard_of` (N,) is the shard number of every sample of the part. Tail `drop` leaves out the samples after the
    last whole batch (others in every epoch); `wrap` fills that batch with the head of the next epoch's order.
    With `epoch_steps` an epoch is so many steps, and goes on where the one before has stopped in the passes.
    A batch is cut into micro-batches, which are dealt out to the ranks in turn: what is computed at the same time is
    contiguous. Without `micro_batch` each rank has one.
    """

    shard_of: NDArray[np.int32]
    seed: int
    global_batch: int
    rank: int
    world_size: int
    tail: Literal["drop", "wrap"] = "drop"
    epoch_steps: int | None = None
    micro_batch: int | None = None

    def __post_init__(self) -> None:
        whole = self.micro_batch or self.world_size
        if self.global_batch < 1 or self.global_batch % whole:
            by = f"micro-batches of {whole}" if self.micro_batch else f"the world size {whole}"
            raise UserError(
                f"global batch {self.global_batch} is not divisible by {by}; "
                "change the batch or the number of processes"
            )
        if not 0 <= self.rank < self.world_size:
            raise UserError(f"rank {self.rank} does not exist among {self.world_size} processes")
        if self.tail not in ("drop", "wrap"):
            raise UserError(f"tail {self.tail!r}: choose drop or wrap")
        if not self.steps_per_pass:
            raise UserError(
                f"global batch {self.global_batch} is larger than the {len(self.shard_of)} training samples; "
                "make it smaller, or set the tail to wrap"
            )

    @property
    def own_micro_batches(self) -> list[slice]:
        """Where in a batch this rank's micro-batches are."""
        size = self.micro_batch or self.global_batch // self.world_size
        starts = range(self.rank * size, self.global_batch, self.world_size * size)
        return [slice(start, start + size) for start in starts]

    @property
    def steps_per_pass(self) -> int:
        whole, rest = divmod(len(self.shard_of), self.global_batch)
        return whole + (1 if rest and self.tail == "wrap" else 0)

    @property
    def steps_per_epoch(self) -> int:
        return self.epoch_steps or self.steps_per_pass

    def steps(self, epoch: int, consumed: int = 0) -> Iterator[list[tuple[int, int]]]:
        """This rank's (epoch, position) pairs step by step, from `consumed` samples of the epoch on."""
        if self.epoch_steps is None:
            yield from self._pass(epoch, consumed)
            return
        step = epoch * self.epoch_steps + consumed // self.global_batch
        while step < (epoch + 1) * self.epoch_steps:
            number, done = divmod(step, self.steps_per_pass)
            left = (epoch + 1) * self.epoch_steps - step
            yield from itertools.islice(self._pass(number, done * self.global_batch), left)
            step += min(left, self.steps_per_pass - done)

    def _pass(self, epoch: int, consumed: int) -> Iterator[list[tuple[int, int]]]:
        samples = self.sequence(epoch, consumed)
        for start in range(consumed, len(samples) - self.global_batch + 1, self.global_batch):
            batch = samples[start : start + self.global_batch]
            yield [(int(e), int(i)) for own in self.own_micro_batches for e, i in batch[own]]

    def sequence(self, epoch: int, consumed: int = 0) -> NDArray[np.int64]:
        """All ranks' samples of an epoch in order, (n, 2) of (epoch, position); a wrapped one has its own epoch.

        `consumed` matters for the length with wrap: whole batches are counted from there.
        """
        n = len(self.shard_of)
        length = n
        if self.tail == "wrap" and consumed < n:
            length = consumed + -(-(n - consumed) // self.global_batch) * self.global_batch
        rounds = range(-(-length // n))
        parts = [
            np.stack([np.full(n, epoch + k), order.epoch_order(self.shard_of, self.seed, epoch + k)], axis=1)
            for k in rounds
        ]
        return np.concatenate(parts)[:length]

    def shard_groups(self, epoch: int) -> list[tuple[int, list[int]]]:
        """The groups of shards of an epoch and the first of the next: (samples before the group, its shards)."""
        first = order.epoch_groups(self.shard_of, self.seed, epoch + 1)[0][1]
        return [*order.epoch_groups(self.shard_of, self.seed, epoch), (len(self.shard_of), first)]
