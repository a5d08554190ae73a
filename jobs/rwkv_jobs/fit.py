"""The driver's side of a training job: launch the workers, then register what they made."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from rwkv_jobs.launch import launch
from rwkvctl.config.specs.jobs import JobSpec, TrainingSpec
from rwkvctl.registry.release import SUMMARY, release
from rwkvctl.runs import mirror, sync
from rwkvctl.runs.journal import say


def run_training(train: Callable[[Any, Path], None], spec: TrainingSpec, run_dir: Path) -> dict[str, Any]:
    """Train to the end (from the latest checkpoint, if there is one); returns the summary with the model's URI."""
    launch(train, spec, run_dir)
    summary: dict[str, Any] = json.loads((run_dir / SUMMARY).read_text())
    return summary | {"model": f"{mirror.address(run_dir)}/model", "model_uri": register(spec, run_dir)}


def register(spec: JobSpec, run_dir: Path) -> str | None:
    """The URI of the registered version; None, with a line that says so, where MLflow cannot be reached.

    The thread that sends the metrics registers it, once they are sent. If that fails it tries again until the run ends;
    the driver says so when it has succeeded.
    """
    uri = spec.tracking.uri or ""
    syncer = sync.running(run_dir)
    assert syncer is not None, "the driver sends the journal while a job runs"
    if not syncer.do("model_uri", partial(release, run_dir, uri)):
        text = f"not registered yet ({syncer.reason}); register it later with: rwkvctl sync"
        say(run_dir, f"{text} {run_dir.name}")
        return None
    found: str | None = syncer.outcomes["model_uri"]
    if found is not None:
        say(run_dir, f"registered {found}")
    return found
