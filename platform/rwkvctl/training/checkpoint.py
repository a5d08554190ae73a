"""Training state on disk: whole or absent, checked by hash, without pickle.

    checkpoints/
      step-00000120/   model.safetensors  [ema.safetensors]  optimizer.safetensors  state.json
      latest.json      {"checkpoint": "step-00000120"}
      best.json        the same, with the best validation score

Everything random is a function of (seed, epoch, sample) or (seed, step, rank), and the learning rate of the step, so
that weights, optimiser and position are the whole state.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.optim import Optimizer

from rwkvctl.base.errors import JobFailedError, UserError
from rwkvctl.base.files import fsync_directory, sha256_file, write_bytes, write_json
from rwkvctl.data.feed.order import ORDER_VERSION

SCHEMA = "rwkv-checkpoint/1"


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

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """The files of a checkpoint and the tensors in each."""
        files = {"model": self.model.state_dict(), "optimizer": optimizer_tensors(self.optimizer)}
        if self.ema is not None:
            files["ema"] = self.ema.state_dict()
        return files


def save_checkpoint(folder: Path, state: TrainState, *, best: bool = False) -> Path:
    """Write a checkpoint, point `latest` (and `best`) at it, and delete those that nothing points at.

    Raises:
        JobFailedError: a tensor holds NaN or infinity; nothing is written.
    """
    if (tensor := not_finite(state)) is not None:
        raise JobFailedError(
            f"step {state.position.step}: {tensor} is not finite, and no checkpoint is written; "
            "start a new run with a lower optimizer.lr"
        )
    name = f"step-{state.position.step:08d}"
    target = folder / name
    if target not in (pointed_at(folder, "latest"), pointed_at(folder, "best")):
        shutil.rmtree(target, ignore_errors=True)  # a killed writer's, who may have had other data or workers
        temporary = folder / f".{name}.{os.getpid()}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        write_state(temporary, state)
        fsync_directory(temporary)
        temporary.replace(target)
        fsync_directory(folder)
    if best:
        write_json(folder / "best.json", {"checkpoint": name})
    write_json(folder / "latest.json", {"checkpoint": name})
    delete_unreferenced(folder)
    return target


def not_finite(state: TrainState) -> str | None:
    """Name of the first tensor that holds NaN or infinity, None if all are finite; waits for the device once."""
    tensors = {
        f"{file} {name}": tensor
        for file, tensors in state.tensors().items()
        for name, tensor in tensors.items()
        if tensor.is_floating_point()
    }
    finite = torch.stack([tensor.isfinite().all().to(tensors_device(state)) for tensor in tensors.values()])
    return next((name for name, fine in zip(tensors, finite.tolist(), strict=True) if not fine), None)


def tensors_device(state: TrainState) -> torch.device:
    """Where the network is; AdamW counts its steps on the CPU."""
    return next(state.model.parameters()).device


def write_state(folder: Path, state: TrainState) -> None:
    """The files of one checkpoint."""
    hashes = {}
    for name, tensors in state.tensors().items():
        path = folder / f"{name}.safetensors"
        write_bytes(path, save({key: value.detach().cpu().contiguous() for key, value in tensors.items()}))
        hashes[path.name] = sha256_file(path)
    content = {
        "schema": SCHEMA,
        "sha256": hashes,
        "position": asdict(state.position),
        "fingerprint": state.fingerprint,
        "sample_order": ORDER_VERSION,
        "spec": state.spec,
        "param_groups": [
            {key: value for key, value in group.items() if key != "params"} for group in state.optimizer.param_groups
        ],
    }
    write_json(folder / "state.json", content)


def pointed_at(folder: Path, pointer: str) -> Path | None:
    """The checkpoint that `latest` or `best` points at; None when there is none."""
    path = folder / f"{pointer}.json"
    if not path.exists():
        return None
    try:
        return folder / json.loads(path.read_text())["checkpoint"]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path}: not a checkpoint pointer; delete it to start the run anew") from None


def delete_unreferenced(folder: Path) -> None:
    """Keep the checkpoints that are pointed at; remove the others and what a killed writer left."""
    kept = {pointed_at(folder, "latest"), pointed_at(folder, "best")}
    for path in [*folder.glob("step-*"), *folder.glob(".step-*.tmp")]:
        if path not in kept:
            shutil.rmtree(path, ignore_errors=True)


def read_checked(checkpoint: Path) -> dict[str, Any]:
    """`state.json` of a checkpoint whose files all have the hashes that it names."""
    path = checkpoint / "state.json"
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{checkpoint}: no checkpoint here (state.json is missing)") from None
    except ValueError:
        raise UserError(f"{path}: damaged (not JSON); restore it or start the run anew") from None
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise UserError(f"{path}: not a checkpoint of schema {SCHEMA}")
    for name, expected in content["sha256"].items():
        file = checkpoint / name
        if not file.is_file():
            raise UserError(f"{file}: missing; restore it or delete {checkpoint.name} and resume from another")
        if sha256_file(file) != expected:
            raise UserError(
                f"{file}: its content does not match the hash in state.json; restore it or start the run anew"
            )
    return content


def load_checkpoint(folder: Path, state: TrainState) -> bool:
    """Continue from `latest`, in place; False when there is nothing to continue from."""
    checkpoint = pointed_at(folder, "latest")
    if checkpoint is None:
        return False
    content = read_checked(checkpoint)
    if content["fingerprint"] != state.fingerprint:
        raise UserError(
            f"{checkpoint}: was trained on data {content['fingerprint'][:12]}, but the data is now "
            f"{state.fingerprint[:12]}; restore the data or start a new run"
        )
    order = content.get("sample_order", 1)  # the first version was not noted
    if order != ORDER_VERSION:
        raise UserError(
            f"{checkpoint}: was trained with the samples in an order of version {order}, and this rwkvctl has version "
            f"{ORDER_VERSION}; continue with the rwkvctl that began the run, or start a new run"
        )
    state.model.load_state_dict(load_file(checkpoint / "model.safetensors"))
    if state.ema is not None:
        state.ema.load_state_dict(load_file(checkpoint / "ema.safetensors"))
    load_optimizer(state.optimizer, load_file(checkpoint / "optimizer.safetensors"), content["param_groups"])
    state.position = Position(**content["position"])
    return True


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
        states.setdefault(int(index), {})[name] = value
    current = optimizer.state_dict()["param_groups"]
    merged = [old | tuples(group) | {"params": old["params"]} for old, group in zip(current, groups, strict=True)]
    optimizer.load_state_dict({"state": states, "param_groups": merged})


def tuples(group: dict[str, Any]) -> dict[str, Any]:
    """Settings as the optimiser had them: JSON has made lists of tuples (betas)."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in group.items()}


__all__ = ["Position", "TrainState", "load_checkpoint", "pointed_at", "read_checked", "save_checkpoint"]
