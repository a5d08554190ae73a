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

from rwkvctl.base.errors import UserError
from rwkvctl.config.specs.parts import ClusterSpec, TrainSpec


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


AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(precision: str, device: torch.device) -> AbstractContextManager[None]:
    """bf16 or fp16 autocast, where that is the precision on this device."""
    dtype = AUTOCAST.get(resolved_precision(precision, device))
    return torch.autocast(device.type, dtype=dtype) if dtype else nullcontext()


def resolved_precision(precision: str, device: torch.device) -> str:
    """What `auto` means on a device: bf16 on a GPU that computes with it, fp16 on an older one, fp32 on a CPU."""
    if precision != "auto":
        return precision
    if device.type != "cuda":
        return "fp32"
    return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"


def resolved_batch_norm(train: TrainSpec, world_size: int) -> str:
    """What `auto` means for batch norm: all workers' images together where each has fewer than 8 at a time."""
    if train.batch_norm != "auto":
        return train.batch_norm
    return "sync" if (train.micro_batch or train.batch_size // world_size) < 8 else "local"


def set_arithmetic(deterministic: bool, device: torch.device) -> None:
    """How this process's GPU computes: TF32 and the fastest convolutions, or only what repeats bit for bit."""
    torch.use_deterministic_algorithms(deterministic)
    if device.type != "cuda":
        return
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read at the first product of matrices
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = not deterministic


@contextmanager
def named_if_not_deterministic() -> Iterator[None]:
    """With `train.deterministic`, one line for an operator that cannot repeat bit for bit on this device."""
    try:
        yield
    except RuntimeError as error:
        operator, found, _ = str(error).partition(" does not have a deterministic implementation")
        if not found:
            raise
        problem = f"train.deterministic: {operator} cannot repeat bit for bit on this device; set it to false"
        raise UserError(problem) from None


def seed_step(seed: int, step: int, micro_batch: int) -> None:
    """Make what is random inside the model (DropPath) a function of seed, step and the number of the micro-batch among
    those of all workers: nothing to save."""
    digest = hashlib.blake2b(f"{seed}/{step}/{micro_batch}".encode(), digest_size=8).digest()
    torch.manual_seed(int.from_bytes(digest, "big") >> 1)
