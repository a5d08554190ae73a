"""The driver's side of a training job: launch the workers, then register what they made."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rwkv_jobs.launch import launch
from rwkvctl.config.specs.jobs import TrainingSpec
from rwkvctl.registry.release import SUMMARY, release
from rwkvctl.runs.journal import say


def run_training(train: Callable[[Any, Path], None], spec: TrainingSpec, run_dir: Path) -> dict[str, Any]:
    """Train to the end (from the latest checkpoint, if there is one); returns the summary with the model's URI."""
    launch(train, spec, run_dir)
    summary: dict[str, Any] = json.loads((run_dir / SUMMARY).read_text())
    return summary | {"model": str(run_dir / "model"), "model_uri": register(spec, run_dir)}


def register(spec: TrainingSpec, run_dir: Path) -> str | None:
    """A version of the registered model; None, with a line that says so, where MLflow cannot be had."""
    try:
        uri = release(run_dir, spec.tracking.uri or "")
    except Exception as error:  # the model is on disk: a tracking server must not fail the training
        reason = " ".join(str(error).split())[:200]
        say(run_dir, f"not registered ({reason}); register it later with: rwkvctl sync {run_dir.name}")
        return None
    if uri is not None:
        say(run_dir, f"registered {uri}")
    return uri
