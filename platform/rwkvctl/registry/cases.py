"""The scores of single cases behind a version's scores: those of the evaluation that noted them, kept with its run."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from rwkvctl.base.errors import UserError
from rwkvctl.registry import measured

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

TABLE = "cases.csv"


def scores_of(client: MlflowClient, version: ModelVersion, metric: str, part: str = "test") -> dict[str, float | None]:
    """One score a case; UserError if they were not kept, or are of no use to a gate."""
    from rwkvctl.training.paired import case_scores

    where = f"{version.name} version {version.version}"
    return case_scores(table_of(client, version, metric, part), metric, where)


def table_of(client: MlflowClient, version: ModelVersion, metric: str, part: str) -> str:
    """The text of the table that a metric of a version is the mean of; UserError as `scores_of`."""
    where = f"{version.name} version {version.version}"
    remedy = f"rwkvctl evaluate models:/{version.name}/{version.version} --part {part}"
    measured.check_for_gate(version.tags, f"{part}/{metric}/mean", where, remedy)
    found = measured.scores(version.tags, f"{part}/{metric}/mean")
    if found is None or found.run_id is None:
        raise UserError(f"{where}: the scores of its {part} cases were not kept; run: {remedy}")
    return table(client, found.run_id, part, where, remedy)


def table(client: MlflowClient, run_id: str, part: str, where: str, remedy: str) -> str:
    """The text of a run's `cases.csv`."""
    from mlflow.exceptions import MlflowException

    with tempfile.TemporaryDirectory() as folder:
        try:
            return Path(client.download_artifacts(run_id, f"{part}/{TABLE}", folder)).read_text()
        except (MlflowException, OSError):
            raise UserError(
                f"{where}: {part}/{TABLE} of MLflow run {run_id} can't be read (deleted?); run: {remedy}"
            ) from None
