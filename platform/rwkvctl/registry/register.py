"""A model folder as a version of a registered model.

A version is an MLflow model that is run from a code file (`registry.pyfunc_model`) over a model folder; it is kept with
the run that made it. Its tags say where it comes from (spec, data fingerprint, git commit, MACs) and how good it is,
with what that was measured on (`registry.measured`). Every function takes the tracking URI; none changes MLflow's
global settings.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rwkvctl.base.errors import UserError
from rwkvctl.base.lineage import code_version
from rwkvctl.base.names import model_name_problem
from rwkvctl.models import bundle
from rwkvctl.registry import measured
from rwkvctl.registry.card import describe
from rwkvctl.registry.cases import CASES_TAG
from rwkvctl.registry.measured import Measured
from rwkvctl.registry.versions import ENCODER_TAG, FINGERPRINT_TAG, PATH_TAG, SPLIT_TAG, WEIGHTS_TAG, versions_of
from rwkvctl.runs import journal
from rwkvctl.runs.mlflow_client import connect, find_run

if TYPE_CHECKING:
    from mlflow import MlflowClient


def register(
    run: str | os.PathLike[str],
    bundle_folder: str | os.PathLike[str],
    name: str,
    tags: Mapping[str, Any] | None = None,
    *,
    metrics: Mapping[str, float] | None = None,
    tracking_uri: str,
) -> int:
    """Make a model folder a version of the registered model `name`; returns the version's number.

    The same weights of the same run are registered once: a resumed job gets the version it made before.

    Args:
        run: an MLflow run id, or the directory of a run that has been synced.
        bundle_folder: as `rwkvctl.models.bundle.save` writes it.
        tags: what else the version should say: spec, git commit, MACs (anything but text is written as JSON).
        metrics: how good the training found the weights to be, on its own data (`val/dsc_strict/mean`).
    """
    if (problem := model_name_problem(name)) is not None:
        raise UserError(problem)
    info = bundle.read_info(bundle_folder)
    bundle.read_weights(bundle_folder, info)
    client = connect(tracking_uri)
    run_id = _run_id(client, run)
    _ensure_model(client, name)
    for made in versions_of(client, name):
        if made.run_id == run_id and made.tags.get(WEIGHTS_TAG) == info.weights_sha256:
            return int(made.version)
    path = f"model-{info.weights_sha256[:12]}"
    with tempfile.TemporaryDirectory() as folder:
        _save_pyfunc(Path(folder) / "model", bundle_folder, info)
        client.log_artifacts(run_id, str(Path(folder) / "model"), path)
    made = client.create_model_version(
        name,
        source=f"{_artifact_root(client, run_id)}/{path}",
        run_id=run_id,
        tags=_version_tags(info, path, Path(bundle_folder).name, tags or {}, metrics or {}),
    )
    describe(client, client.get_model_version(name, str(made.version)))
    return int(made.version)


def record_scores(
    bundle_folder: str | os.PathLike[str],
    values: Mapping[str, float],
    where: Measured,
    *,
    run_id: str | None = None,
    tracking_uri: str,
) -> list[str]:
    """Note scores, and what they were measured on, on every version that has the weights of a model folder; with the
    MLflow run that keeps the scores of every case. Returns the URIs of the versions."""
    info = bundle.read_info(bundle_folder)
    client = connect(tracking_uri)
    found = list(client.search_model_versions(f"tags.`{WEIGHTS_TAG}` = '{info.weights_sha256}'"))
    tags = measured.tags(info, where, values)
    if run_id is not None and measured.own(where, info):
        tags[f"{CASES_TAG}{where.part}"] = run_id
    for version in found:
        for key, value in tags.items():
            client.set_model_version_tag(version.name, str(version.version), key, value)
        describe(client, client.get_model_version(version.name, str(version.version)))
    return [f"models:/{version.name}/{version.version}" for version in found]


def _run_id(client: MlflowClient, run: str | os.PathLike[str]) -> str:
    path = Path(run) / journal.JOURNAL_NAME
    if path.exists():
        found = find_run(client, journal.run_uid(path))
        if found is None:
            raise UserError(f"{run} is not in MLflow yet: run `rwkvctl sync {run}` first")
        return found
    _or_user_error(client.get_run, str(run), message=f"{run}: neither a run directory nor the id of an MLflow run")
    return str(run)


def _artifact_root(client: MlflowClient, run_id: str) -> str:
    return client.get_run(run_id).info.artifact_uri.rstrip("/")


def _ensure_model(client: MlflowClient, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _save_pyfunc(path: Path, bundle_folder: str | os.PathLike[str], info: bundle.BundleInfo) -> None:
    """Write an MLflow model; its signature comes from the type hints of `pyfunc_model`."""
    import mlflow.pyfunc

    mlflow.pyfunc.save_model(
        path,
        python_model=str(Path(__file__).with_name("pyfunc_model.py")),
        artifacts={"bundle": str(Path(bundle_folder).absolute())},
        pip_requirements=[f"rwkvctl=={importlib.metadata.version('rwkvctl')}"],
        metadata={"dataset": info.dataset, "classes": info.classes},
    )


def _version_tags(
    info: bundle.BundleInfo, path: str, folder: str, tags: Mapping[str, Any], metrics: Mapping[str, float]
) -> dict[str, str]:
    own: dict[str, Any] = {
        WEIGHTS_TAG: info.weights_sha256,
        FINGERPRINT_TAG: info.fingerprint,
        PATH_TAG: f"{path}/artifacts/{folder}",
        SPLIT_TAG: measured.split_of(info),
        "dataset": info.dataset,
        "classes": info.classes,
        "kind": info.kind,
        "model": info.model,
        "image_size": info.image_size,
    }
    if "encoder" in info.extra:
        own[ENCODER_TAG] = info.extra["encoder"]
    scores = measured.training_tags(info, metrics, code_version())
    return {key: _text(value) for key, value in {**own, **tags, **scores}.items()}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)


def _or_user_error(call: Any, *args: Any, message: str) -> Any:
    from mlflow.exceptions import MlflowException

    try:
        return call(*args)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise UserError(message) from None
        raise
