"""The model as a training step calls it: spread over the workers, compiled, with less memory, as the spec says."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rwkv_jobs.worker import Worker
from rwkv_unet.decoder import UpBlock
from rwkv_unet.rwkv_unet_enc import GLSP
from rwkvctl.base.errors import UserError
from rwkvctl.config.specs.jobs import TrainingSpec
from rwkvctl.training import batch_norm


class TrainingForm:
    """Calls `model`, whose weights and their names stay as they are; gradients are averaged over the workers.

    The wrapper is compiled, not what it wraps: torch then cuts the graph where gradients are sent, so that sending
    overlaps with computing.
    """

    def __init__(self, model: nn.Module, spec: TrainingSpec, me: Worker):
        self.model, self.me = model, me
        self.synchronised = spec.train.batch_norm == "sync" and me.world_size > 1
        self._groups: dict[int, Any] = {}
        if self.synchronised:
            # Groups of their own: in the last round of uneven micro-batches some workers are done with them.
            rest = spec.micro_batches(me.world_size) % me.world_size
            self._groups = {n: dist.new_group(list(range(n))) for n in {me.world_size, rest} - {0}}
            batch_norm.synchronise(model, me.device, self._groups[me.world_size])
        self._taking_part = me.world_size
        own = spec.train.batch_size // spec.micro_batches(me.world_size)
        self.normalised_over = own * (me.world_size if self.synchronised else 1) if batch_norm.norms(model) else None
        """Images that batch norm takes its statistics from; None in a network without it."""
        if spec.train.activation_checkpointing:
            checkpoint_blocks(model)
        self.compile = spec.train.compile
        self.wrap()

    def wrap(self) -> None:
        """Again when other parameters are trained than before."""
        self.wrapped = self.me.wrap(self.model)
        self._call = compiled(self.wrapped, self.me) if self.compile else self.wrapped

    def __call__(self, images: Tensor) -> Any:
        """What the network gives in training mode: logits, or with deep supervision a list of them."""
        return self._call(images)

    def accumulating(self) -> AbstractContextManager[None]:
        """Gradients of a backward pass in this stay with the worker; the next one outside it sends their sum."""
        return self.wrapped.no_sync() if self.me.world_size > 1 else nullcontext()  # type: ignore[operator]

    def take_part(self, workers: int) -> None:
        """The next forward pass is one of the first `workers` workers alone."""
        if self.synchronised and workers != self._taking_part:
            batch_norm.set_group(self.model, self._groups[workers])
            self._taking_part = workers


def compiled(model: nn.Module, me: Worker) -> Any:
    if me.device.type == "cpu" and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        raise UserError("train.compile: torch.compile needs a C++ compiler on a CPU; install g++ or leave it out")
    return torch.compile(model)


def checkpoint_blocks(model: nn.Module) -> None:
    """Let the blocks of encoder and decoder keep only their input, and compute the rest again in the backward pass."""
    blocks = [module for module in model.modules() if isinstance(module, GLSP | UpBlock)]
    for block in blocks:
        again = partial(_contexts, block)
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, context_fn=again)  # type: ignore[method-assign]


def _contexts(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), frozen_statistics(block)


@contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Passes in training mode that leave the running statistics of batch norms alone, since others count them.

    By a momentum of 0: without statistics batch norm would save other tensors for its backward pass.
    """
    norms = [norm for norm in batch_norm.norms(model) if norm.training and norm.num_batches_tracked is not None]
    momenta = [norm.momentum for norm in norms]
    counts = [norm.num_batches_tracked.clone() for norm in norms if norm.num_batches_tracked is not None]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum, count in zip(norms, momenta, counts, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(count)  # type: ignore[union-attr]
