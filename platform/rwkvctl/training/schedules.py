"""The learning rate as a function of the step: nothing to save, so a resumed run continues exactly."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from timm.scheduler.cosine_lr import CosineLRScheduler
from timm.scheduler.poly_lr import PolyLRScheduler

from rwkvctl.config.specs.parts import OptimizerSpec

ACDC_PERIOD = 112
"""T_max of the authors' ACDC script: three quarters of 150 epochs, but advanced every step."""


def learning_rates(spec: OptimizerSpec, *, lr: float, epochs: int, steps_per_epoch: int) -> Callable[[int], float]:
    """A function from the global step (from 0) to the rate that this step is taken with.

    The cosine counts the warm-up, as the authors' pretraining does: at the warm-up's end the rate falls from the
    ramp's last value onto the cosine.
    """
    if spec.schedule == "constant" or (spec.update == "epoch" and epochs == 1):
        return lambda step: lr
    if spec.schedule == "acdc_as_coded":
        return lambda step: cosine(lr, spec.min_lr, step, ACDC_PERIOD)
    if spec.schedule == "synapse_as_coded":
        return lambda step: synapse_as_coded(lr, step, epochs, steps_per_epoch, spec.poly_power)
    return from_timm(spec, lr, epochs, steps_per_epoch)


def from_timm(spec: OptimizerSpec, lr: float, epochs: int, steps_per_epoch: int) -> Callable[[int], float]:
    """timm's cosine or polynomial schedule with linear warm-up, per epoch or per step."""
    unit = 1 if spec.update == "step" else steps_per_epoch
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=lr)
    common: dict[str, Any] = {
        "t_initial": epochs * steps_per_epoch // unit,
        "lr_min": spec.min_lr,
        "warmup_t": spec.warmup_epochs * steps_per_epoch // unit,
        "warmup_lr_init": spec.warmup_lr if spec.warmup_epochs else 0,
        "t_in_epochs": False,
    }
    if spec.schedule == "cosine":
        scheduler: CosineLRScheduler | PolyLRScheduler = CosineLRScheduler(optimizer, **common)
    else:
        scheduler = PolyLRScheduler(optimizer, power=spec.poly_power, **common)

    def rate(step: int) -> float:
        scheduler.step_update(step // unit)
        return optimizer.param_groups[0]["lr"]

    return rate


def cosine(lr: float, min_lr: float, t: int, period: int) -> float:
    """Half a cosine from `lr` at t = 0 to `min_lr` at t = `period`, and back."""
    return min_lr + (lr - min_lr) * (1 + math.cos(math.pi * t / period)) / 2


def synapse_as_coded(lr: float, step: int, epochs: int, steps_per_epoch: int, power: float) -> float:
    """poly(power), one step late; the first step of every epoch takes that rate times the cosine's last factor."""
    total = epochs * steps_per_epoch
    poly = lr * (1 - max(step - 1, 0) / total) ** power
    epoch, within = divmod(step, steps_per_epoch)
    if within or not epoch:
        return poly
    return poly * (1 + math.cos(math.pi * epoch / epochs)) / (1 + math.cos(math.pi * (epoch - 1) / epochs))
