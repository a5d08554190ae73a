"""The state of a training run: all that it needs to go on exactly, and a copy of it in the host's memory.

Everything random is a function of (seed, epoch, sample) or (seed, step, rank), and the learning rate of the step, so
that weights, optimiser and position are the whole state.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


@dataclass
class Position:
    """How far a training run has come."""

    step: int = 0
    """Optimiser steps taken."""
    epoch: int = 0
    consumed: int = 0
    """Samples of this epoch that were trained on, over all workers."""
    best: float | None = None
    """Best validation score so far."""
    best_epoch: int | None = None
    best_weights: str | None = None
    """Whose score that is: of the `model`, or of its moving average, `ema`."""
    scaler: dict[str, Any] | None = None
    """State of the loss scaler of fp16."""


@dataclass
class TrainState:
    """What a checkpoint holds: tensors, position, and the data and spec that they belong to."""

    model: nn.Module
    optimizer: Optimizer
    fingerprint: str
    """Of the data's manifest; a checkpoint is not resumed on other data."""
    spec: dict[str, Any]
    ema: nn.Module | None = None
    position: Position = field(default_factory=Position)

    def networks(self) -> dict[str, nn.Module]:
        """The network that is trained and, if there is one, that of the moving average, `ema`."""
        return {"model": self.model} | ({} if self.ema is None else {"ema": self.ema})

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """The files of a checkpoint and the tensors in each."""
        files = {"model": self.model.state_dict(), "optimizer": optimizer_tensors(self.optimizer)}
        if self.ema is not None:
            files["ema"] = self.ema.state_dict()
        return files


@dataclass(frozen=True)
class StateCopy:
    """A state as it was after a step, which training no longer changes."""

    files: dict[str, dict[str, Tensor]]
    position: dict[str, Any]
    fingerprint: str
    spec: dict[str, Any]
    param_groups: list[dict[str, Any]]
    delivered: torch.cuda.Event | None

    def wait(self) -> None:
        """Return when the last tensor has come from the GPU."""
        if self.delivered is not None:
            self.delivered.synchronize()


class Copier:
    """Copies states into memory that is allocated once, so that a copy is lost when the next is made."""

    def __init__(self) -> None:
        self.memory: dict[tuple[str, str], Tensor] = {}

    def copy(self, state: TrainState) -> StateCopy:
        """A GPU copies in the order of its work, before the next step changes anything; nobody waits for it here."""
        files = {
            file: {name: self.copy_tensor((file, name), tensor.detach()) for name, tensor in tensors.items()}
            for file, tensors in state.tensors().items()
        }
        groups = [
            {key: plain(value) for key, value in group.items() if key != "params"}
            for group in state.optimizer.param_groups
        ]
        return StateCopy(files, asdict(state.position), state.fingerprint, state.spec, groups, record_event(state))

    def copy_tensor(self, key: tuple[str, str], tensor: Tensor) -> Tensor:
        """With the strides that it has: reordering is left to the writer."""
        memory = self.memory.get(key)
        if memory is None or layout(memory) != layout(tensor):
            memory = self.memory[key] = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
        return memory.copy_(tensor, non_blocking=tensor.is_cuda)


def plain(value: Any) -> Any:
    """A setting of a parameter group as JSON has it; some optimisers count their steps in a tensor there."""
    return value.item() if isinstance(value, Tensor) else value


def layout(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.stride(), tensor.dtype


def record_event(state: TrainState) -> torch.cuda.Event | None:
    """A mark behind the work that a GPU has been given so far; None on a CPU."""
    device = next(state.model.parameters()).device
    if device.type != "cuda":
        return None
    event = torch.cuda.Event(blocking=True)
    event.record(torch.cuda.current_stream(device))
    return event


def optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as flat tensors named `<parameter index>.<name>`."""
    states = optimizer.state_dict()["state"]
    return {
        f"{index}.{name}": torch.as_tensor(value) for index, state in states.items() for name, value in state.items()
    }


def load_optimizer(optimizer: Optimizer, tensors: dict[str, Tensor], groups: list[dict[str, Any]]) -> None:
    """The inverse of `optimizer_tensors`, with the settings of the parameter groups."""
    states: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        states.setdefault(int(index), {})[name] = value.clone()  # of a file that is mapped, and will be deleted
    current = optimizer.state_dict()["param_groups"]
    merged = [old | tuples(group) | {"params": old["params"]} for old, group in zip(current, groups, strict=True)]
    optimizer.load_state_dict({"state": states, "param_groups": merged})


def tuples(group: dict[str, Any]) -> dict[str, Any]:
    """Settings as the optimiser had them: JSON has made lists of tuples (betas)."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in group.items()}


__all__ = ["Copier", "Position", "StateCopy", "TrainState", "load_optimizer"]
