"""The unlabeled half of a semi-supervised step: its images, its loss, and how much that weighs.

Which images a step takes depends on its number alone, so that a run that is continued goes on with the next ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import Tensor

from rwkv_jobs.stepper import Total
from rwkv_jobs.worker import Worker
from rwkvctl.config.specs.jobs import FinetuneSpec
from rwkvctl.data.feed.loaders import TrainLoader
from rwkvctl.data.feed.samples import Batch
from rwkvctl.data.store.manifest import Manifest
from rwkvctl.training.losses import consistency_loss


class Unlabeled:
    """An endless stream of this rank's unlabeled images, and their loss."""

    def __init__(self, spec: FinetuneSpec, manifest: Manifest, me: Worker, steps_per_epoch: int):
        assert spec.consistency is not None
        self.spec, self.me = spec.consistency, me
        self.ramp = self.spec.ramp_epochs * steps_per_epoch
        self.loader = TrainLoader(
            manifest,
            split=None,
            image_size=spec.data.image_size,
            global_batch=self.spec.batch_size,
            rank=me.rank,
            world_size=me.world_size,
            seed=spec.seed,
            workers=spec.data.workers,
            augment=spec.augment,
            micro_batch=self.spec.batch_size // spec.micro_batches(me.world_size),
            tail="wrap",
            unlabeled=True,
        )
        self._batches: Iterator[Batch] = iter(())
        self._next = -1

    def batch(self, step: int) -> Batch:
        """That of a step, views (B, 2C, H, H) and turns (B,); steps are asked for in order, beginning anywhere."""
        if step != self._next:
            self._batches = self._from(step)
        self._next = step + 1
        return next(self._batches)

    def _from(self, step: int) -> Iterator[Batch]:
        number, done = divmod(step, self.loader.steps_per_epoch)
        while True:
            yield from self.loader.epoch(number, done * self.spec.batch_size)
            number, done = number + 1, 0

    def loss(self, logits: Tensor, turns: Tensor, step: int, total: Total) -> Tensor:
        """The weighted consistency of the logits of a step's views, (2B, C, H, H)."""
        return self.weight(step) * consistency_loss(logits, turns, total)

    def weight(self, step: int) -> float:
        """Rises as exp(-5 (1 - t)^2) over the ramp."""
        done = min(1.0, step / self.ramp) if self.ramp else 1.0
        return self.spec.weight * math.exp(-5 * (1 - done) ** 2)
