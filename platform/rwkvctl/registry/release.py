"""From a finished training run to a version of a registered model, at once or when a server is there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rwkvctl.base.files import write_json
from rwkvctl.base.lineage import git_commit
from rwkvctl.config.specs.jobs import FinetuneSpec, PretrainSpec, TrainingSpec
from rwkvctl.runs import folder as run_folder
from rwkvctl.training.metrics import flat_metrics

SUMMARY = "summary.json"


def registered_name(spec: TrainingSpec) -> str:
    """What the run's model is called in the registry; empty for a run that registers none."""
    if spec.tracking.register_as is not None:
        return spec.tracking.register_as
    if isinstance(spec, FinetuneSpec):
        return f"rwkv_unet_{spec.data.dataset}"
    assert isinstance(spec, PretrainSpec)
    return spec.model.name


def release(run_dir: Path, tracking_uri: str) -> str | None:
    """Register the run's model, once; returns its URI, None for a run that registers none.

    Raises what MLflow raises; the run must have been sent to it before.
    """
    from rwkvctl.registry.register import register

    spec = run_folder.read_spec(run_dir)
    if not isinstance(spec, TrainingSpec) or not registered_name(spec):
        return None
    summary: dict[str, Any] = json.loads((run_dir / SUMMARY).read_text())
    tags: dict[str, Any] = {key: value for key, value in summary.items() if isinstance(value, int | str)}
    tags |= {"run": run_dir.name, "git_commit": git_commit(), "spec": spec.model_dump_json(by_alias=True)}
    version = register(
        run_dir,
        run_dir / "model",
        registered_name(spec),
        tracking_uri=tracking_uri,
        tags=tags,
        metrics=validation_metrics(summary),
    )
    return f"models:/{registered_name(spec)}/{version}"


def validation_metrics(summary: dict[str, Any]) -> dict[str, float]:
    """The scores of a summary under the names that the run has them by."""
    if "val" in summary:
        return flat_metrics(summary["val"], "val")
    return {f"val/{key}": summary[key] for key in ("top1", "top5") if key in summary}


def release_later(run_dir: Path, tracking_uri: str) -> str | None:
    """Register the model of a finished run that could not be registered at its end, and note it in its result."""
    result = run_folder.result(run_dir)
    if result is None or result.get("model_uri") or not (run_dir / SUMMARY).exists():
        return None
    uri = release(run_dir, tracking_uri)
    if uri is not None:
        write_json(
            run_dir / run_folder.RESULT, result | {"model_uri": uri, "run_id": run_folder.mlflow_run_id(run_dir)}
        )
    return uri
