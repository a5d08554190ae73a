"""One optimiser step, and its log line."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from rwkv_jobs.optimizer import make_schedule
from rwkv_jobs.worker import Worker, seed_step
from rwkvctl.base.errors import JobFailedError, UserError
from rwkvctl.config.specs.jobs import TrainingSpec


def training_form(model: nn.Module, spec: TrainingSpec, me: Worker) -> Callable[[Tensor], Tensor]:
    """The model as the training step calls it: gradients averaged over the workers, compiled if the spec says so.

    The weights and their names stay those of `model`. The wrapper is compiled, not what it wraps: torch then cuts the
    graph where gradients are sent, so that sending overlaps with computing.
    """
    wrapped = me.wrap(model)
    if not spec.train.compile:
        return wrapped
    if me.device.type == "cpu" and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        raise UserError("train.compile: torch.compile needs a C++ compiler on a CPU; install g++ or leave it out")
    return torch.compile(wrapped)


class Stepper:
    """Takes optimiser steps and writes what came of them into the journal."""

    def __init__(
        self, spec: TrainingSpec, worker: Worker, model: nn.Module, optimizer: Optimizer, steps_per_epoch: int
    ):
        self.spec, self.worker, self.model, self.optimizer = spec, worker, model, optimizer
        self.rate = make_schedule(spec, steps_per_epoch)
        self.clock, self.images = time.monotonic(), 0

    def seed(self, step: int) -> None:
        """Before the forward pass of a step."""
        seed_step(self.spec.seed, step, self.worker.rank)

    def step(self, loss: Tensor, step: int) -> dict[str, float] | None:
        """Backward, clip, update; every `train.log_steps` steps the metrics of this step, over all workers."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        limit = self.spec.optimizer.clip_grad
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), limit) if limit else None
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(step)
        self.optimizer.step()
        self.images += self.spec.train.batch_size
        if (step + 1) % self.spec.train.log_steps:
            return None
        if norm is None:
            norm = nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])
        return self.metrics(loss, norm)

    def metrics(self, loss: Tensor, norm: Tensor) -> dict[str, float]:
        """Loss, rate, gradient norm and throughput since the last call."""
        mean_loss = self.worker.mean(loss.detach()).item()
        if mean_loss != mean_loss:
            raise JobFailedError(
                "the loss is not a number: lower optimizer.lr, or set optimizer.clip_grad or train.precision=fp32"
            )
        now = time.monotonic()
        speed = self.images / (now - self.clock)
        self.clock, self.images = now, 0
        return {
            "train/loss": mean_loss,
            "train/lr": self.optimizer.param_groups[0]["lr"],
            "train/grad_norm": norm.item(),
            "train/images_per_second": speed,
        }

    def skip_time(self) -> None:
        """Leave what just happened (a validation, a checkpoint) out of the throughput."""
        self.clock, self.images = time.monotonic(), 0
