"""A model in MLflow's own terms: the logged model that a run has put out, with its scores by data set.

MLflow links it with the run that made it, the runs that it was scored in, and the versions that were made of it. Every
function may be called again after one that was cut short.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rwkvctl.config.specs.changes import flatten
from rwkvctl.models.bundle import BundleInfo
from rwkvctl.registry.tags import WEIGHTS_TAG, text
from rwkvctl.runs.data_inputs import DataInput

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run

VERSIONS_TAG = "mlflow.modelVersions"
"""Where MLflow's page of a logged model looks for the versions that were made of it."""
MOST_IN_BATCH = 1000


def logged(client: MlflowClient, run: Run, info: BundleInfo, pyfunc: Path) -> LoggedModel:
    """The MLflow model of a folder as a logged model of the run, made where there is none of these weights yet."""
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus

    model = find(client, run, info) or client.create_logged_model(
        run.info.experiment_id,
        name=re.sub(r"[^\w-]+", "_", str(info.model["name"])),
        source_run_id=run.info.run_id,
        tags={WEIGHTS_TAG: info.weights_sha256, "dataset": info.dataset},
        params={key: text(value)[:500] for key, value in described(info).items()},
        model_type=info.kind,
    )
    if model.status != LoggedModelStatus.READY:
        client.log_model_artifacts(model.model_id, str(pyfunc))
        model = client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    put_out = run.outputs.model_outputs if run.outputs else []
    if model.model_id not in [output.model_id for output in put_out]:
        client.log_outputs(run.info.run_id, [LoggedModelOutput(model.model_id, step=0)])
    return model


def find(client: MlflowClient, run: Run, info: BundleInfo) -> LoggedModel | None:
    query = f"tags.{WEIGHTS_TAG} = '{info.weights_sha256}'"
    made = client.search_logged_models([run.info.experiment_id], filter_string=query)
    return next((model for model in made if model.source_run_id == run.info.run_id), None)


def described(info: BundleInfo) -> dict[str, Any]:
    fields = info.model_dump(
        mode="json", include={"model", "classes", "image_size", "volumes", "image_kind", "channels"}
    )
    return {key: value for key, value in flatten(fields).items() if value is not None}


def made_version(client: MlflowClient, model_id: str, name: str, version: int) -> None:
    """Note a version on the logged model that it was made of."""
    tags = client.get_logged_model(model_id).tags
    known, own = json.loads(tags.get(VERSIONS_TAG, "[]")), {"name": name, "version": str(version)}
    if own not in [{**each, "version": str(each.get("version"))} for each in known]:
        client.set_logged_model_tags(model_id, {VERSIONS_TAG: json.dumps([*known, own])})


def scored(client: MlflowClient, run_id: str, model_id: str, names: Iterable[str], data: DataInput) -> None:
    """Put metrics of a run, their last values, beside the logged model and the data that they were measured on."""
    from mlflow.entities import Metric

    points = (client.get_metric_history(run_id, name) for name in names)
    last = [max(found, key=lambda each: (each.step, each.timestamp)) for found in points]
    metrics = [
        Metric(
            each.key,
            each.value,
            each.timestamp,
            each.step,
            model_id=model_id,
            dataset_name=data.name,
            dataset_digest=data.digest,
            run_id=run_id,
        )
        for each in last
    ]
    for start in range(0, len(metrics), MOST_IN_BATCH):
        client.log_batch(run_id, metrics=metrics[start : start + MOST_IN_BATCH])


def used(client: MlflowClient, run: Run, model_id: str) -> None:
    """Note that a run, an evaluation, was of the logged model."""
    from mlflow.entities import LoggedModelInput

    inputs = run.inputs.model_inputs if run.inputs else []
    if model_id not in [each.model_id for each in inputs]:
        client.log_inputs(run.info.run_id, models=[LoggedModelInput(model_id)])
