"""The pieces that pretraining and fine-tuning share: optimiser, precision, one optimiser step, its log line."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from timm.optim import create_optimizer_v2
from torch import Tensor, nn
from torch.optim import Optimizer

from rwkv_jobs.worker import Worker, seed_step
from rwkv_unet.flops import count_macs, count_parameters
from rwkvctl.base.errors import JobFailedError, UserError
from rwkvctl.config.specs.jobs import TrainingSpec
from rwkvctl.config.specs.parts import OptimizerSpec
from rwkvctl.data.feed.loaders import TrainLoader
from rwkvctl.data.store.manifest import Manifest
from rwkvctl.models import bundle
from rwkvctl.runs.journal import Journal
from rwkvctl.runs.lease import RunLease
from rwkvctl.training.checkpoint import Position, TrainState, save_checkpoint
from rwkvctl.training.schedules import learning_rates


def make_optimizer(model: nn.Module, spec: OptimizerSpec) -> Optimizer:
    """AdamW without weight decay on norms and biases."""
    return create_optimizer_v2(model, opt="adamw", lr=spec.lr, weight_decay=spec.weight_decay)


def base_rate(spec: TrainingSpec) -> float:
    """The learning rate for this batch size."""
    reference = spec.optimizer.lr_reference_batch
    return spec.optimizer.lr * (spec.train.batch_size / reference if reference else 1)


def make_schedule(spec: TrainingSpec, steps_per_epoch: int) -> Callable[[int], float]:
    """The learning rate by global step."""
    return learning_rates(spec.optimizer, lr=base_rate(spec), epochs=spec.train.epochs, steps_per_epoch=steps_per_epoch)


def train_loader(spec: TrainingSpec, augment: Any, manifest: Manifest, me: Worker) -> TrainLoader:
    """The training part, in an order that depends on the data, the seed and the epoch alone."""
    return TrainLoader(
        manifest,
        split=spec.data.split or manifest.default_split,
        image_size=spec.data.image_size,
        global_batch=spec.train.batch_size,
        rank=me.rank,
        world_size=me.world_size,
        seed=spec.seed,
        workers=spec.data.workers,
        augment=augment,
        tail=spec.train.tail,
        epoch_steps=spec.train.epoch_steps,
    )


def describe(model: nn.Module, manifest: Manifest, image_size: int) -> dict[str, Any]:
    """Parameters and MACs of a model at its training size, and the data's fingerprint."""
    macs = count_macs(model, (manifest.channels, image_size, image_size))
    return {
        "parameters": count_parameters(model),
        "macs_paper": macs.paper,
        "macs_true": macs.true,
        "data_fingerprint": manifest.fingerprint,
        "data_quarantined": manifest.quarantined,
    }


def model_info(
    spec: TrainingSpec, manifest: Manifest, model: dict[str, Any], extra: dict[str, Any]
) -> bundle.BundleInfo:
    """What a model folder says of the data that the model was made for."""
    return bundle.BundleInfo(
        model=model,
        classes=manifest.classes,
        image_size=spec.data.image_size,
        image_kind=manifest.image_kind,
        channels=manifest.channels,
        intensity=manifest.content.intensity,
        orientation=manifest.content.orientation,
        dataset=manifest.dataset,
        fingerprint=manifest.fingerprint,
        extra=extra,
    )


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


class Recorder:
    """What rank 0 writes: journal and checkpoints, under a lease on the run's folder. On other ranks it does nothing.

    Made before anything is read from the run: all ranks wait until rank 0 holds the lease, so that no orphan of an
    earlier start can still write what they are about to read. Closed however the job ends.
    """

    def __init__(self, worker: Worker, run_dir: Path):
        self.worker, self.run_dir, self.active = worker, run_dir, worker.is_main
        if self.active:
            self.lease = RunLease(run_dir)
        worker.barrier()
        if self.active:
            self.journal = Journal(run_dir / "journal.jsonl", lease=self.lease)

    def metrics(self, values: dict[str, float] | None, step: int) -> None:
        if self.active and values:
            self.journal.metrics(values, step)

    def params(self, values: dict[str, object]) -> None:
        if self.active:
            self.journal.params(values)

    def event(self, kind: str, **fields: object) -> None:
        if self.active:
            self.journal.event(kind, **fields)

    def checkpoint(self, state: TrainState, *, best: bool = False) -> None:
        """Write a checkpoint; what the journal says of its steps is on disk before it. All ranks see it afterwards."""
        if self.active:
            self.journal.flush()
            save_checkpoint(self.run_dir / "checkpoints", state, best=best)
        self.worker.barrier()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *error: object) -> None:
        if self.active:
            self.journal.close()
            self.lease.release()


def advance(position: Position, batch_size: int, steps_per_epoch: int) -> bool:
    """Count one step; True when it was the epoch's last (the epoch itself is closed by `close_epoch`)."""
    position.step += 1
    position.consumed += batch_size
    return position.consumed >= steps_per_epoch * batch_size


def close_epoch(position: Position) -> None:
    """Go to the start of the next epoch."""
    position.epoch += 1
    position.consumed = 0


def validation_is_due(spec: TrainingSpec, position: Position) -> bool:
    """Every `train.validate_every` epochs, and after the last."""
    every = spec.train.validate_every
    return every > 0 and (position.epoch % every == 0 or position.epoch == spec.train.epochs)


def improves(position: Position, score: float) -> bool:
    """Whether a validation score is the best so far; if so it is noted."""
    if position.best is not None and score <= position.best:
        return False
    position.best, position.best_epoch = score, position.epoch
    return True


def checkpoint_is_due(spec: TrainingSpec, position: Position) -> bool:
    """Whether a checkpoint inside the epoch is due."""
    every = spec.train.checkpoint_steps
    return every is not None and position.step % every == 0
