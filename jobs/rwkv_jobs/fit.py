"""The driver's side of a training job: launch the workers, then register what they made."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rwkv_jobs.launch import launch
from rwkvctl.lineage import git_commit
from rwkvctl.metrics import flat_metrics
from rwkvctl.specs.jobs import TrainingSpec
from rwkvctl.tracking.journal import say


def run_training(
    train: Callable[[Any, Path], None], spec: TrainingSpec, run_dir: Path, *, default_name: str
) -> dict[str, Any]:
    """Train to the end (from the latest checkpoint, if there is one); returns the summary with the model's URI."""
    launch(train, spec, run_dir)
    summary: dict[str, Any] = json.loads((run_dir / "summary.json").read_text())
    name = default_name if spec.tracking.register_as is None else spec.tracking.register_as
    uri = register(spec, run_dir, name, summary) if name else None
    return summary | {"model": str(run_dir / "model"), "model_uri": uri}


def register(spec: TrainingSpec, run_dir: Path, name: str, summary: dict[str, Any]) -> str | None:
    """A version of the registered model; None, with a line that says so, where MLflow cannot be had."""
    tags = {key: value for key, value in summary.items() if isinstance(value, int | str)}
    tags |= {"run": run_dir.name, "git_commit": git_commit(), "spec": spec.model_dump_json(by_alias=True)}
    metrics = flat_metrics(summary["val"], "val") if "val" in summary else top_metrics(summary)
    try:
        from rwkvctl.tracking import registry

        version = registry.register(
            run_dir, run_dir / "model", name, tracking_uri=spec.tracking.uri or "", tags=tags, metrics=metrics
        )
    except Exception as error:  # the model is on disk: a tracking server must not fail the training
        reason = " ".join(str(error).split())[:200]
        say(run_dir, f"not registered ({reason}); register it later with: rwkvctl sync {run_dir.name}")
        return None
    say(run_dir, f"registered models:/{name}/{version}")
    return f"models:/{name}/{version}"


def top_metrics(summary: dict[str, Any]) -> dict[str, float]:
    """Top-1 and top-5 of a classifier under the names that its run has them by."""
    return {f"val/{key}": summary[key] for key in ("top1", "top5") if key in summary}
