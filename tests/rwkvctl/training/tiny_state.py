"""A training state that is made and trained in milliseconds, for the tests of checkpoints."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rwkvctl.training.checkpoint import TrainState
from rwkvctl.training.checkpoint_folder import find_checkpoint, settle_on
from rwkvctl.training.checkpoint_read import load_checkpoint


def make_state(seed: int, *, ema: bool = True, lr: float = 1e-3) -> TrainState:
    """A small network with everything that has state: norms with buffers, two parameter groups, an average."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 2))
    model = model.to(memory_format=torch.channels_last)
    decayed, others = [model[0].weight, model[3].weight], [model[0].bias, *model[1].parameters(), model[3].bias]
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": 0.05},
        {"params": others, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.8, 0.95))
    return TrainState(model, optimizer, "f" * 64, {"seed": 0}, copy.deepcopy(model) if ema else None)


def train(state: TrainState, steps: int) -> None:
    """A few steps on data that depend on the step alone."""
    for _ in range(steps):
        torch.manual_seed(1000 + state.position.step)
        loss = state.model(torch.randn(5, 3, 8, 8)).square().mean()
        state.optimizer.zero_grad()
        loss.backward()
        state.optimizer.param_groups[0]["lr"] *= 0.9
        state.optimizer.step()
        if state.ema is not None:
            for average, value in zip(state.ema.parameters(), state.model.parameters(), strict=True):
                average.data.lerp_(value.data, 0.1)
        state.position.step += 1
        state.position.consumed += 5


def bits(state: TrainState) -> dict[str, bytes]:
    return {
        f"{file}/{name}": tensor.numpy().tobytes()
        for file, tensors in state.tensors().items()
        for name, tensor in tensors.items()
    }


def resume(folder: Path, state: TrainState) -> list[str] | None:
    """Continue from the newest sound checkpoint, as a run does: the damage that was passed over, None without any."""
    found = find_checkpoint(folder)
    if found is None:
        return None
    load_checkpoint(found.path, state, found.content)
    settle_on(folder, found)
    return found.damage
