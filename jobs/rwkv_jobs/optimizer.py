"""The optimiser of a training job, and its learning rate by step."""

from __future__ import annotations

from collections.abc import Callable

from timm.optim import create_optimizer_v2
from torch import nn
from torch.optim import Optimizer

from rwkvctl.config.specs.jobs import TrainingSpec
from rwkvctl.config.specs.parts import OptimizerSpec
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
