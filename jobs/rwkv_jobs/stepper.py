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


NEVER = torch.iinfo(torch.int64).max


class Stepper:
    """Takes optimiser steps and measures them.

    Whether loss and gradient are finite is noted on the device and read without a stall: on a GPU with the metrics and
    before a checkpoint, on a CPU at once.
    """

    def __init__(
        self, spec: TrainingSpec, worker: Worker, model: nn.Module, optimizer: Optimizer, steps_per_epoch: int
    ):
        self.spec, self.worker, self.model, self.optimizer = spec, worker, model, optimizer
        self.rate = make_schedule(spec, steps_per_epoch)
        self.clock, self.images = time.monotonic(), 0
        self.diverged = torch.full((2,), NEVER, device=worker.device)  # first step with such a loss, such a gradient

    def seed(self, step: int) -> None:
        """Before the forward pass of a step."""
        seed_step(self.spec.seed, step, self.worker.rank)

    def step(self, loss: Tensor, step: int) -> dict[str, float] | None:
        """Backward, clip, update; every `train.log_steps` steps the metrics of this step, over all workers.

        Raises:
            JobFailedError: on every worker, once the loss or the gradient of a step was not finite.
        """
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        limit = self.spec.optimizer.clip_grad
        if limit:
            norm = nn.utils.clip_grad_norm_(self.model.parameters(), limit)
        else:
            norm = nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])
        self.watch(loss, norm, step + 1)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(step)
        self.optimizer.step()
        self.images += self.spec.train.batch_size
        log = (step + 1) % self.spec.train.log_steps == 0
        if log or self.worker.device.type == "cpu":
            self.check_finite()
        return self.metrics(loss, norm) if log else None

    def watch(self, loss: Tensor, norm: Tensor, step: int) -> None:
        """Note the first step whose loss or gradient norm is not finite, without waiting for the device."""
        finite = torch.stack([loss.detach().float(), norm.float()]).isfinite()
        self.diverged = self.diverged.minimum(torch.where(finite, NEVER, step))

    def check_finite(self) -> None:
        """JobFailedError on all workers, if a step of any of them was not finite."""
        loss, gradient = self.worker.least(self.diverged).tolist()
        if min(loss, gradient) < NEVER:
            what = "loss" if loss <= gradient else "gradient"
            raise JobFailedError(f"step {min(loss, gradient)}: the {what} is not finite; {self.remedy()}")

    def remedy(self) -> str:
        """What else to try. Continuing would come to the same step again."""
        clip = self.spec.optimizer.clip_grad
        tries = [
            f"optimizer.lr below {self.spec.optimizer.lr:g}",
            f"optimizer.clip_grad below {clip:g}" if clip else "optimizer.clip_grad=1",
        ]
        if self.spec.train.precision != "fp32":
            tries.append("train.precision=fp32")
        return f"start a new run with {', '.join(tries[:-1])} or {tries[-1]}"

    def metrics(self, loss: Tensor, norm: Tensor) -> dict[str, float]:
        """Loss, rate, gradient norm and throughput since the last call."""
        mean_loss = self.worker.mean(loss.detach()).item()
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
