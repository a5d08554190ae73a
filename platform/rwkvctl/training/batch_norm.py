"""Batch norm whose statistics are those of all workers' images, on GPUs and on CPUs.

torch's SyncBatchNorm is for GPUs. On CPUs `GlobalBatchNorm` does the same by two small sums over the workers in the
forward pass (mean, then squared deviations, so that nothing cancels) and one in the backward pass.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d, convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Group = Any
"""A process group of torch.distributed, whose type differs between its versions; None is all workers."""


def synchronise(model: nn.Module, device: torch.device, group: Group = None) -> None:
    """Let every batch norm of `model` take its statistics over the group, in place. Names and tensors stay."""
    for name, child in list(model.named_children()):
        if not isinstance(child, _BatchNorm):
            synchronise(child, device, group)
        elif device.type == "cuda":
            setattr(model, name, convert_sync_batchnorm(child, group))
        else:
            setattr(model, name, GlobalBatchNorm.like(child, group))


def set_group(model: nn.Module, group: Group) -> None:
    """Take statistics over another group from now on."""
    for module in model.modules():
        if isinstance(module, nn.SyncBatchNorm | GlobalBatchNorm):
            module.process_group = group


def norms(model: nn.Module) -> list[_BatchNorm]:
    """All batch norms of a model."""
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


class GlobalBatchNorm(_BatchNorm):
    """(B, C, ...) -> (B, C, ...): in training, normalised by mean and variance over the images of all workers.

    With timm's `BatchNormAct2d` in its place, `drop` and `act` follow, as they do there.
    """

    process_group: Group
    drop: nn.Module | None
    act: nn.Module | None

    @classmethod
    def like(cls, norm: _BatchNorm, group: Group) -> GlobalBatchNorm:
        """With the parameters and buffers of `norm`, not copies."""
        new = cls(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        new.weight, new.bias = norm.weight, norm.bias
        new.running_mean, new.running_var = norm.running_mean, norm.running_var
        new.num_batches_tracked, new.training = norm.num_batches_tracked, norm.training
        new.drop = new.act = None
        if isinstance(norm, BatchNormAct2d):
            new.drop, new.act = norm.get_submodule("drop"), norm.get_submodule("act")
        new.process_group = group
        return new

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected an input of at least 2 dimensions, got {input.dim()}")

    @torch.compiler.disable
    def forward(self, input: Tensor) -> Tensor:
        out = self._normalise(input) if self.training else super().forward(input)
        return out if self.drop is None or self.act is None else self.act(self.drop(out))

    def _normalise(self, x: Tensor) -> Tensor:
        out, mean, variance, count = _Normalise.apply(x, self.weight, self.bias, self.eps, self.process_group)
        if self.track_running_stats:
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            with torch.no_grad():
                self.num_batches_tracked.add_(1)
                share = self.momentum if self.momentum is not None else 1 / self.num_batches_tracked
                unbiased = variance * (count / (count - 1))
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
                self.running_var.lerp_(unbiased.to(self.running_var.dtype), share)
        return out


class _Normalise(torch.autograd.Function):
    """x (B, C, ...) -> normalised x, and mean (C,), biased variance (C,) and values a channel (), all of the group and
    without gradient. Computed in float32, or in float64 for such an input; sums on a CPU are always in float64."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, group: Group
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        exact = torch.float64 if x.device.type == "cpu" else torch.float32  # as torch's own batch norm adds up
        values = x if x.dtype == torch.float64 else x.float()
        own = torch.full((1,), x.numel() // x.shape[1], dtype=exact, device=x.device)
        sums = torch.cat([values.sum(others(x), dtype=exact), own])
        dist.all_reduce(sums, group=group)
        count, mean = sums[-1], sums[:-1] / sums[-1]
        centred = values - along(mean.to(values.dtype), x)
        squares = centred.square().sum(others(x), dtype=exact)
        dist.all_reduce(squares, group=group)
        variance = squares / count
        deviation = (variance + eps).rsqrt().to(values.dtype)
        mean = mean.to(values.dtype)
        out = centred * along(deviation if weight is None else deviation * weight, x)
        if bias is not None:
            out += along(bias, x)
        ctx.save_for_backward(x, weight, mean, deviation, count)
        ctx.group, ctx.has_bias = group, bias is not None
        ctx.mark_non_differentiable(mean, variance, count)
        return out.to(x.dtype), mean, variance, count

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, deviation, count = ctx.saved_tensors
        gradient = gradient.to(mean.dtype)
        normal = (x.to(mean.dtype) - along(mean, x)) * along(deviation, x)
        of_bias = gradient.sum(others(x), dtype=count.dtype)
        of_weight = (gradient * normal).sum(others(x), dtype=count.dtype)
        means = torch.cat([of_bias, of_weight])
        dist.all_reduce(means, group=ctx.group)
        shift, slope = (means / count).to(mean.dtype).chunk(2)
        scale = deviation if weight is None else deviation * weight
        of_x = (gradient - along(shift, x) - normal * along(slope, x)) * along(scale, x)
        return (
            of_x.to(x.dtype),
            None if weight is None else of_weight.to(weight.dtype),
            of_bias.to(mean.dtype) if ctx.has_bias else None,
            None,
            None,
        )


def others(x: Tensor) -> list[int]:
    """All axes but the channels'."""
    return [0, *range(2, x.ndim)]


def along(values: Tensor, x: Tensor) -> Tensor:
    """(C,) shaped to go with x (B, C, ...)."""
    return values.view(1, -1, *[1] * (x.ndim - 2))
