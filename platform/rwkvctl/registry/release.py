"""From a finished run to the registry, at once or when a server is there: a training's model becomes a version, an
evaluation's scores are noted on the versions that have the weights.

Both read `summary.json` of the run's folder, the one place where a run keeps its scores.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rwkvctl.base.files import write_json
from rwkvctl.base.lineage import git_commit
from rwkvctl.config.specs.jobs import EvaluateSpec, FinetuneSpec, JobSpec, PretrainSpec, TrainingSpec, TuneSpec
from rwkvctl.registry.cases import TABLE
from rwkvctl.registry.measured import Measured
from rwkvctl.runs import folder as run_folder
from rwkvctl.training import metrics

SUMMARY = "summary.json"


def registers(spec: JobSpec) -> TrainingSpec | None:
    """The training whose model a run makes: of folds, that of each of them. None for a run that makes none."""
    if isinstance(spec, TuneSpec):
        return spec.base if spec.folds else None
    return spec if isinstance(spec, TrainingSpec) else None


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
    training = registers(spec)
    if training is None or not registered_name(training):
        return None
    summary: dict[str, Any] = json.loads((run_dir / SUMMARY).read_text())
    tags: dict[str, Any] = {key: value for key, value in summary.items() if isinstance(value, int | str)}
    tags |= {"run": run_dir.name, "git_commit": git_commit(), "spec": spec.model_dump_json(by_alias=True)}
    version = register(
        run_dir,
        run_dir / "model",
        registered_name(training),
        tracking_uri=tracking_uri,
        tags=tags,
        metrics=metrics.tracked(summary.get("val", summary), "val"),
        intervals=intervals_of(summary.get("val", {}), "val"),
    )
    return f"models:/{registered_name(training)}/{version}"


def note_scores(run_dir: Path, tracking_uri: str) -> list[str]:
    """Put an evaluation's scores on the registered versions with its weights; returns their URIs.

    Raises what MLflow raises. Doing it again changes nothing.
    """
    from rwkvctl.registry.register import record_scores

    summary: dict[str, Any] = json.loads((run_dir / SUMMARY).read_text())
    where = Measured.model_validate(summary["measured"])
    values = metrics.tracked(summary, where.part)
    return record_scores(
        run_dir / "model",
        values,
        where,
        run_id=run_folder.mlflow_run_id(run_dir),
        has_cases=(run_dir / "artifacts" / where.part / TABLE).exists(),  # a classification has none
        intervals=intervals_of(summary, where.part),
        tracking_uri=tracking_uri,
    )


def intervals_of(summary: dict[str, Any], part: str) -> dict[str, tuple[float, float]]:
    """Of the means of a summary, by the names that tracking has them by."""
    means = (summary.get("intervals") or {}).get("mean", {})
    return {f"{part}/{figure}/mean": (ends[0], ends[1]) for figure, ends in means.items() if ends}


def release_later(run_dir: Path, tracking_uri: str) -> str | None:
    """What a finished run could not do at its end: register its model, and say so in its result, or note its scores."""
    result = run_folder.result(run_dir)
    if result is None or not (run_dir / SUMMARY).exists():
        return None
    if isinstance(run_folder.read_spec(run_dir), EvaluateSpec):
        note_scores(run_dir, tracking_uri)
        return None
    if result.get("model_uri"):
        return None
    uri = release(run_dir, tracking_uri)
    if uri is not None:
        write_json(
            run_dir / run_folder.RESULT, result | {"model_uri": uri, "run_id": run_folder.mlflow_run_id(run_dir)}
        )
    return uri
