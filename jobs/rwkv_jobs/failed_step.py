"""What is kept of a step whose loss or gradient was not finite, so that it can be looked into.

    failed-step/   model.safetensors (the weights before it)   step.json (its number, its samples by micro-batch)

The rest of a step is a function of the run's spec and data, and of its number.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import nn

from rwkv_jobs.recorder import Recorder
from rwkv_jobs.stepper import NotFinite
from rwkvctl.base.errors import JobFailedError, UserError
from rwkvctl.base.files import write_bytes, write_json
from rwkvctl.config.specs.jobs import TrainingSpec
from rwkvctl.data.feed.loaders import TrainLoader
from rwkvctl.training.checkpoint import Position

FOLDER = "failed-step"


@contextmanager
def kept_for_replay(
    recorder: Recorder, spec: TrainingSpec, model: nn.Module, loader: TrainLoader, position: Position
) -> Iterator[None]:
    """Keep a step that is not finite, and say how to look into it."""
    try:
        yield
    except NotFinite as error:
        command = ""
        if error.weights_before:
            if recorder.active:
                keep(recorder.run_dir / FOLDER, spec, model, loader, position, error)
            command = f"; look into it with: rwkvctl run replay {recorder.run_dir.name}"
        raise JobFailedError(f"{error}{command}") from None


def keep(
    folder: Path, spec: TrainingSpec, model: nn.Module, loader: TrainLoader, position: Position, error: NotFinite
) -> None:
    """Write the folder. The host may have come to know of the step later, in the same epoch."""
    before = error.step - 1
    consumed = position.consumed - (position.step - before) * spec.train.batch_size
    shutil.rmtree(folder, ignore_errors=True)
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    write_bytes(folder / "model.safetensors", save(state))
    content = {
        "step": before,
        "epoch": position.epoch,
        "consumed": consumed,
        "reason": error.what,
        "world_size": loader.schedule.world_size,
        "samples": loader.keys(position.epoch, consumed),
    }
    write_json(folder / "step.json", content)


def read(run_dir: Path) -> dict[str, Any]:
    """`step.json` of a run."""
    path = run_dir / FOLDER / "step.json"
    if not path.exists():
        raise UserError(f"run {run_dir.name}: has no step that was not finite; there is nothing to replay")
    content: dict[str, Any] = json.loads(path.read_text())
    return content
