"""One process of a training or evaluation job: its rank, its device, and what it says to the others."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from rwkvctl.config.specs.parts import ClusterSpec


@dataclass(frozen=True)
class Worker:
    """Rank and device of this process."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes the journal and the checkpoints."""
        return self.rank == 0

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model with its gradients averaged over all workers; itself when there is one worker."""
        if self.world_size == 1:
            return model
        devices = [self.device] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(model, device_ids=devices)

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        """The mean of a tensor over all workers."""
        return self.sum(value) / self.world_size

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        """The sum of a tensor over all workers. Gradients pass through, for a loss of the global batch; every worker
        must go on to the same loss from it."""
        return value if self.world_size == 1 else _Sum.apply(value)

    def least(self, value: torch.Tensor) -> torch.Tensor:
        """The smallest value of every element over all workers."""
        if self.world_size == 1:
            return value
        value = value.clone()
        dist.all_reduce(value, dist.ReduceOp.MIN)
        return value

    def gather(self, value: Any) -> list[Any]:
        """Everybody's value, by rank."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        """Return when every worker has come here."""
        if self.world_size > 1:
            dist.barrier()

    def share_buffers(self, model: nn.Module) -> None:
        """Give every worker the running statistics of rank 0, so that all of them evaluate one model."""
        if self.world_size > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, src=0)


class _Sum(torch.autograd.Function):
    """All-reduce whose gradient is multiplied by the world size, since `wrap` averages the workers' gradients."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor) -> torch.Tensor:
        value = value.clone()
        dist.all_reduce(value)
        return value

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * dist.get_world_size()


@contextmanager
def worker(cluster: ClusterSpec) -> Iterator[Worker]:
    """This process as a worker: of Ray (which has set up the process group), of torchrun, or on its own."""
    own_group = not dist.is_initialized() and int(os.environ.get("WORLD_SIZE", "1")) > 1
    if own_group:
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    in_group = dist.is_initialized()
    threads = torch.get_num_threads()
    torch.set_num_threads(cluster.cpus_per_worker)  # by every launcher alike: the sums of a CPU depend on it
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if in_group else (0, 1)
    try:
        yield Worker(rank, world_size, pick_device())
    finally:
        torch.set_num_threads(threads)
        if own_group:
            dist.destroy_process_group()


def pick_device() -> torch.device:
    """The GPU of this process (Ray shows each worker its own; torchrun counts them), or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    index = int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count()
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def autocast(precision: str, device: torch.device) -> AbstractContextManager[None]:
    """bf16 autocast where it is asked for, or on a GPU by itself."""
    if resolved_precision(precision, device) == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


def resolved_precision(precision: str, device: torch.device) -> str:
    """`auto` is bf16 on a GPU and fp32 on a CPU."""
    if precision != "auto":
        return precision
    return "bf16" if device.type == "cuda" else "fp32"


def seed_step(seed: int, step: int, rank: int) -> None:
    """Make what is random inside the model (DropPath) a function of seed, step and rank: nothing to save."""
    digest = hashlib.blake2b(f"{seed}/{step}/{rank}".encode(), digest_size=8).digest()
    torch.manual_seed(int.from_bytes(digest, "big") >> 1)
