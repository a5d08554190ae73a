"""A model folder as a version of a registered model.

A version is an MLflow model that is run from a code file (`registry.pyfunc_model`) over a model folder; its files are
those of a logged model (`registry.logged`), so they outlive the run that made it. Its tags (`registry.tags`) say where
it comes from, and how good it is with what that was measured on (`registry.measured`). Every function takes the
tracking URI; none changes MLflow's global settings.
"""

from __future__ import annotations

import importlib.metadata
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rwkvctl.base.errors import UserError
from rwkvctl.base.lineage import code_version
from rwkvctl.base.names import model_name_problem
from rwkvctl.models import bundle, members
from rwkvctl.registry import input_example, logged, measured
from rwkvctl.registry.card import describe
from rwkvctl.registry.measured import Measured
from rwkvctl.registry.tags import ENCODER, FINGERPRINT_TAG, LOGGED, PATH_TAG, SPLIT_TAG, WEIGHTS_TAG, fields, packed
from rwkvctl.registry.versions import versions_of
from rwkvctl.runs import journal
from rwkvctl.runs.mlflow_client import connect, find_run

if TYPE_CHECKING:
    from mlflow import MlflowClient

BEST = "best_val/"
"""How a training's metrics begin that are of the weights in its model folder."""


def register(
    run: str | os.PathLike[str],
    bundle_folder: str | os.PathLike[str],
    name: str,
    tags: Mapping[str, Any] | None = None,
    *,
    metrics: Mapping[str, float] | None = None,
    intervals: measured.Intervals | None = None,
    tracking_uri: str,
) -> int:
    """Make a model folder a version of the registered model `name`; returns the version's number.

    The same weights of the same run are registered once: a resumed job gets the version it made before.

    Args:
        run: an MLflow run id, or the directory of a run that has been synced.
        bundle_folder: as `rwkvctl.models.bundle.save` writes it.
        tags: what else the version should say: spec, git commit, MACs (anything but text is written as JSON).
        metrics: how good the training found the weights to be, on its own data (`val/dsc_strict/mean`).
        intervals: of these metrics.
    """
    if (problem := model_name_problem(name)) is not None:
        raise UserError(problem)
    info = bundle.read_info(bundle_folder)
    members.check(bundle_folder)
    client = connect(tracking_uri)
    run_id = _run_id(client, run)
    _ensure_model(client, name)
    for made in versions_of(client, name):
        if made.run_id == run_id and made.tags.get(WEIGHTS_TAG) == info.weights_sha256:
            return int(made.version)
    of_run = client.get_run(run_id)
    with tempfile.TemporaryDirectory() as folder:
        _save_pyfunc(Path(folder) / "model", bundle_folder, info)
        model = logged.logged(client, of_run, info, Path(folder) / "model")
    best = [key for key in of_run.data.metrics if key.startswith(BEST)]
    logged.scored(client, run_id, model.model_id, best, measured.data_of(info, "val"))
    own = {PATH_TAG: f"artifacts/{Path(bundle_folder).name}", LOGGED: model.model_id}
    made = client.create_model_version(
        name,
        source=model.artifact_location,  # `models:/m-...` is looked up at MLflow's global address
        run_id=run_id,
        tags=_version_tags(info, {**own, **(tags or {})})
        | measured.training_tags(info, metrics or {}, run_id, code_version(), intervals),
        model_id=model.model_id,
    )
    logged.made_version(client, model.model_id, name, int(made.version))
    describe(client, client.get_model_version(name, str(made.version)))
    return int(made.version)


def record_scores(
    bundle_folder: str | os.PathLike[str],
    values: Mapping[str, float],
    where: Measured,
    *,
    run_id: str | None = None,
    has_cases: bool = True,
    intervals: measured.Intervals | None = None,
    tracking_uri: str,
) -> list[str]:
    """Note scores, and what they were measured on, on every version that has the weights of a model folder; with the
    MLflow run that measured them, which keeps the scores of every case if it `has_cases`. Returns the URIs of the
    versions."""
    info = bundle.read_info(bundle_folder)
    client = connect(tracking_uri)
    found = list(client.search_model_versions(f"tags.`{WEIGHTS_TAG}` = '{info.weights_sha256}'"))
    tags = measured.tags(info, where, values, run_id if has_cases else None, intervals)
    for version in found:
        for key, value in tags.items():
            client.set_model_version_tag(version.name, str(version.version), key, value)
        describe(client, client.get_model_version(version.name, str(version.version)))
    models = {fields(version.tags).get(LOGGED) for version in found} - {None}
    if run_id is not None:
        of_run = client.get_run(run_id)
        names = sorted(values.keys() & of_run.data.metrics)
        for model_id in sorted(map(str, models)):
            logged.used(client, of_run, model_id)
            logged.scored(client, run_id, model_id, names, where.data)
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
    if info.kind == "segmentation":
        input_example.add(path, info)


def _version_tags(info: bundle.BundleInfo, tags: Mapping[str, Any]) -> dict[str, str]:
    found: dict[str, Any] = {
        WEIGHTS_TAG: info.weights_sha256,
        FINGERPRINT_TAG: info.fingerprint,
        SPLIT_TAG: measured.split_of(info),
        "dataset": info.dataset,
        "classes": info.classes,
        "kind": info.kind,
        "model": info.model,
        "image_size": info.image_size,
    }
    if info.volumes is not None:
        found["volumes"] = info.volumes.model_dump(mode="json")
    if "encoder" in info.extra:
        found[ENCODER] = info.extra["encoder"]
    return packed({**found, **tags})


def _or_user_error(call: Any, *args: Any, message: str) -> Any:
    from mlflow.exceptions import MlflowException

    try:
        return call(*args)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise UserError(message) from None
        raise
