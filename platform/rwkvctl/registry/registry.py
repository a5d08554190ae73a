"""The model registry: versions of a model with their lineage, aliases that point to one, gates before an alias moves.

A version is an MLflow model that is run from a code file (`rwkvctl.registry.pyfunc_model`) over a model folder; it is
kept with the run that made it. Its tags say where it comes from (spec, data fingerprint, git commit, MACs) and, as
`metric.<name>`, how good it is. Every function takes the tracking URI; none changes MLflow's global settings.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib.metadata
import json
import operator
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rwkvctl.base.errors import UserError
from rwkvctl.base.paths import cache_dir
from rwkvctl.models import bundle
from rwkvctl.runs import journal
from rwkvctl.runs.sync import connect, find_run

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

WEIGHTS_TAG = "weights_sha256"
FINGERPRINT_TAG = "fingerprint"
PATH_TAG = "rwkvctl.bundle"  # Where the model folder lies among the run's artifacts.
METRIC_TAG = "metric."

_NAME = re.compile(r"[A-Za-z0-9][\w\-. ]*")
_URI = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>\d+|latest))")
_GATE = re.compile(r"\s*(?P<metric>[^<>=]+?)\s*(?P<sign>>=|<=|>|<)\s*(?P<bound>\S+)\s*")
_SIGNS = {">=": operator.ge, ">": operator.gt, "<=": operator.le, "<": operator.lt}


@dataclass(frozen=True)
class Version:
    """A version of a registered model, as `list` and `show` print it."""

    name: str
    version: int
    run_id: str
    aliases: list[str]
    created: int
    """ms since 1970."""
    tags: dict[str, str]
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Model:
    """A registered model: how many versions it has, its newest and where its aliases point."""

    name: str
    versions: int
    latest: int | None
    aliases: dict[str, int]


# Register -----------------------------------------------------------------------------------------------------------


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
        metrics: how good the weights are, for gates; the names of the run's metrics are best.
    """
    if not _NAME.fullmatch(name):
        raise UserError(f"model name {name!r}: use letters, digits, '_', '-' and '.' only")
    info = bundle.read_info(bundle_folder)
    bundle.read_weights(bundle_folder, info)
    client = connect(tracking_uri)
    run_id = _run_id(client, run)
    _ensure_model(client, name)
    for made in client.search_model_versions(f"name='{name}'"):
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
    return int(made.version)


def record_metrics(
    bundle_folder: str | os.PathLike[str], metrics: Mapping[str, float], *, tracking_uri: str
) -> list[str]:
    """Note metrics on every version that has the weights of a model folder, for gates; returns their URIs."""
    weights = bundle.read_info(bundle_folder).weights_sha256
    client = connect(tracking_uri)
    found = list(client.search_model_versions(f"tags.`{WEIGHTS_TAG}` = '{weights}'"))
    for version in found:
        for key, value in metrics.items():
            client.set_model_version_tag(version.name, str(version.version), f"{METRIC_TAG}{key}", repr(float(value)))
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
        "dataset": info.dataset,
        "model": info.model,
        "image_size": info.image_size,
    }
    measured = {f"{METRIC_TAG}{key}": repr(float(value)) for key, value in metrics.items()}
    return {key: _text(value) for key, value in {**own, **tags, **measured}.items()}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)


# Look ---------------------------------------------------------------------------------------------------------------


def list_models(tracking_uri: str) -> list[Model]:
    """All registered models, by name."""
    client = connect(tracking_uri)
    models = []
    for name in _model_names(client):
        numbers = [int(version.version) for version in client.search_model_versions(f"name='{name}'")]
        aliases = {alias: int(number) for alias, number in client.get_registered_model(name).aliases.items()}
        models.append(Model(name, len(numbers), max(numbers, default=None), aliases))
    return models


def show(name: str, tracking_uri: str) -> list[Version]:
    """The versions of a registered model, the newest first; UserError with near matches if there is none."""
    client = connect(tracking_uri)
    aliases = _aliases(client, name)
    versions = [_version(found, aliases) for found in client.search_model_versions(f"name='{name}'")]
    return sorted(versions, key=lambda version: -version.version)


def all_versions(tracking_uri: str) -> list[Version]:
    """Every version of every registered model that has the spec of its training in its tags."""
    client = connect(tracking_uri)
    found = [version for name in _model_names(client) for version in client.search_model_versions(f"name='{name}'")]
    return [_version(version, {}) for version in found if "spec" in version.tags]


def _version(found: ModelVersion, aliases: Mapping[str, int]) -> Version:
    number = int(found.version)
    return Version(
        name=found.name,
        version=number,
        run_id=found.run_id or "",
        aliases=sorted(alias for alias, target in aliases.items() if target == number),
        created=found.creation_timestamp,
        tags={key: value for key, value in found.tags.items() if not key.startswith(METRIC_TAG)},
        metrics={
            key.removeprefix(METRIC_TAG): float(value)
            for key, value in found.tags.items()
            if key.startswith(METRIC_TAG)
        },
    )


def _model_names(client: MlflowClient) -> list[str]:
    names: list[str] = []
    token = None
    while True:
        page = client.search_registered_models(page_token=token)
        names += [model.name for model in page]
        if not (token := page.token):
            return sorted(names)


def _aliases(client: MlflowClient, name: str) -> dict[str, int]:
    """Where each alias of a model points; UserError if there is no such model."""
    names = _model_names(client)
    if name not in names:
        raise UserError(f"no registered model {name!r}; {_suggest(name, names, 'rwkvctl model list')}")
    return {alias: int(number) for alias, number in client.get_registered_model(name).aliases.items()}


def _suggest(word: str, choices: Sequence[str], otherwise: str) -> str:
    near = difflib.get_close_matches(word, choices)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"choose from {', '.join(choices[:10])}" if choices else f"there is none yet (`{otherwise}`)"


# Promote ------------------------------------------------------------------------------------------------------------


def promote(name: str, version: int, alias: str, *, gates: Sequence[str] = (), tracking_uri: str) -> list[str]:
    """Point an alias to a version, if it passes every gate; returns a line for each gate that it passed.

    Args:
        gates: such as `dsc_strict>=0.8`, or `dsc_strict>champion` to compare with the version that the alias `champion`
            points to (passed where it points to none). A metric is looked for among the version's own, then among those
            of its run, under its name and then as `test/<name>/mean`.

    Raises:
        UserError: no such model or version, a gate that cannot be read or that the version does not pass; then no alias
            has moved.
    """
    client = connect(tracking_uri)
    aliases = _aliases(client, name)
    candidate = _find_version(client, name, version)
    passed = [_check_gate(client, gate, candidate, aliases) for gate in gates]
    client.set_registered_model_alias(name, alias, str(version))
    return passed


def _find_version(client: MlflowClient, name: str, version: int) -> ModelVersion:
    numbers = sorted(int(found.version) for found in client.search_model_versions(f"name='{name}'"))
    if version not in numbers:
        known = ", ".join(map(str, numbers)) or "none"
        raise UserError(f"model {name!r} has no version {version}; it has {known}")
    return client.get_model_version(name, str(version))


def _check_gate(client: MlflowClient, gate: str, candidate: ModelVersion, aliases: Mapping[str, int]) -> str:
    """One line on why the candidate passes; UserError on why it does not."""
    parts = _GATE.fullmatch(gate)
    if parts is None:
        raise UserError(f"gate {gate!r}: write METRIC>=NUMBER or METRIC>ALIAS, with >=, >, <= or <")
    metric, sign, bound = parts["metric"], parts["sign"], parts["bound"]
    value = _metric(client, candidate, metric)
    limit, what = _limit(client, gate, candidate, metric, bound, aliases)
    if limit is None:
        return f"{metric} = {value:.6g}: no {bound} yet to compare with"
    if not _SIGNS[sign](value, limit):
        raise UserError(
            f"{candidate.name} version {candidate.version} is not promoted: {metric} = {value:.6g} is not {sign} {what}"
        )
    return f"{metric} = {value:.6g} {sign} {what}"


def _limit(
    client: MlflowClient,
    gate: str,
    candidate: ModelVersion,
    metric: str,
    bound: str,
    aliases: Mapping[str, int],
) -> tuple[float | None, str]:
    """The right side of a gate, and how to call it; None where it names an alias that points to nothing yet."""
    with contextlib.suppress(ValueError):
        return float(bound), bound
    if bound not in aliases:
        if difflib.get_close_matches(bound, list(aliases), cutoff=0.8):
            raise UserError(
                f"gate {gate!r}: no alias {bound!r}; {_suggest(bound, list(aliases), 'rwkvctl model show')}"
            )
        return None, bound
    other = client.get_model_version(candidate.name, str(aliases[bound]))
    ours, theirs = (one.tags.get(FINGERPRINT_TAG) or "unknown" for one in (candidate, other))
    if ours != theirs:
        raise UserError(
            f"gate {gate!r}: version {candidate.version} and {bound} (version {other.version}) come from different "
            f"data ({ours[:12]} and {theirs[:12]}), so their metrics cannot be compared: retrain one of them"
        )
    value = _metric(client, other, metric)
    return value, f"{value:.6g} of {bound} (version {other.version})"


def _metric(client: MlflowClient, version: ModelVersion, metric: str) -> float:
    own = {key.removeprefix(METRIC_TAG): value for key, value in version.tags.items() if key.startswith(METRIC_TAG)}
    of_run = client.get_run(version.run_id).data.metrics if version.run_id else {}
    for name in (metric, f"test/{metric}/mean"):
        for source in (own, of_run):
            if name in source:
                return float(source[name])
    near = _suggest(metric, sorted({*own, *of_run}), "rwkvctl evaluate")
    raise UserError(f"{version.name} version {version.version} has no metric {metric!r}; {near}")


# Resolve ------------------------------------------------------------------------------------------------------------


def resolve(uri: str, tracking_uri: str) -> Path:
    """The local model folder of `models:/name@alias`, `models:/name/3` or `models:/name/latest`.

    It is downloaded once; the files are those of the version or it is a UserError, by `bundle.load`.

    Raises:
        UserError: a URI of another form, or one that does not exist (with near matches).
    """
    parts = _URI.fullmatch(uri)
    if parts is None:
        raise UserError(f"model URI {uri!r}: write models:/NAME@ALIAS, models:/NAME/VERSION or models:/NAME/latest")
    client = connect(tracking_uri)
    version = _resolve_version(client, parts)
    path = version.tags.get(PATH_TAG)
    if path is None or not version.run_id:
        raise UserError(f"{uri}: version {version.version} was not registered by rwkvctl and has no model folder")
    kept = cache_dir() / "models" / f"{version.run_id}-{version.tags[WEIGHTS_TAG][:12]}"
    if not (kept / bundle.INFO_NAME).exists():
        _download(client, version.run_id, path, kept)
    return kept


def _resolve_version(client: MlflowClient, parts: re.Match[str]) -> ModelVersion:
    name, alias, number = parts["name"], parts["alias"], parts["version"]
    aliases = _aliases(client, name)
    if alias is not None:
        if alias not in aliases:
            hint = _suggest(alias, sorted(aliases), f"rwkvctl model promote {name} VERSION --alias {alias}")
            raise UserError(f"model {name!r} has no alias {alias!r}; {hint}")
        return client.get_model_version(name, str(aliases[alias]))
    if number == "latest":
        numbers = [int(found.version) for found in client.search_model_versions(f"name='{name}'")]
        return _find_version(client, name, max(numbers, default=0))
    return _find_version(client, name, int(number))


def _download(client: MlflowClient, run_id: str, path: str, target: Path) -> None:
    """Fetch a model folder; it appears under `target` whole, also when two processes fetch it at once."""
    temporary = target.with_name(f".{target.name[:12]}.{uuid.uuid4().hex[:8]}")
    temporary.mkdir(parents=True)
    try:
        found = Path(client.download_artifacts(run_id, path, str(temporary)))
        if not target.exists():
            with contextlib.suppress(FileExistsError, OSError):
                found.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    if not (target / bundle.INFO_NAME).exists():
        raise UserError(f"{target}: the download of the model did not complete: remove that folder and try again")


def _or_user_error(call: Any, *args: Any, message: str) -> Any:
    from mlflow.exceptions import MlflowException

    try:
        return call(*args)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise UserError(message) from None
        raise
