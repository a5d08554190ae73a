"""What is in a registry: models, their versions and aliases. Nothing here changes anything.

Other programs keep models in the same registry, under any name and with any tags; people edit tags by hand. What is
not ours is skipped or noted, and never keeps the rest from being shown.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rwkvctl.base.errors import UserError
from rwkvctl.base.suggestions import did_you_mean
from rwkvctl.registry.measured import ELSEWHERE_TAG, SCORES_TAG, metrics_of
from rwkvctl.registry.tags import PATH_TAG, fields
from rwkvctl.runs.mlflow_client import connect

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

LOCK = "rwkvctl.lock."
"""How the names of registered models begin that are locks, and no models (see `aliases`)."""


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
    """And what is in its details."""
    metrics: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    """What is odd about it, a line each."""


@dataclass(frozen=True)
class Model:
    """A registered model: how many versions it has, its newest and where its aliases point."""

    name: str
    versions: int
    latest: int | None
    aliases: dict[str, int]


def list_models(tracking_uri: str) -> list[Model]:
    """All registered models, by name."""
    client = connect(tracking_uri)
    models = []
    for name in model_names(client):
        numbers = [int(version.version) for version in versions_of(client, name)]
        aliases = {alias: int(number) for alias, number in client.get_registered_model(name).aliases.items()}
        models.append(Model(name, len(numbers), max(numbers, default=None), aliases))
    return models


def show(name: str, tracking_uri: str) -> list[Version]:
    """The versions of a registered model, the newest first; UserError with near matches if there is none."""
    client = connect(tracking_uri)
    aliases = aliases_of(client, name)
    versions = [_version(found, aliases) for found in versions_of(client, name)]
    return sorted(versions, key=lambda version: -version.version)


def all_versions(tracking_uri: str) -> list[Version]:
    """Every version of every registered model that has the spec of its training in its tags."""
    client = connect(tracking_uri)
    return [_version(version, {}) for version in _search(client, None) if "spec" in fields(version.tags)]


def versions_of(client: MlflowClient, name: str) -> list[ModelVersion]:
    """All versions of a model. Some names (`bob's "best"`) cannot be written in MLflow's filters: those are
    compared here."""
    query = f"name='{name}'" if re.fullmatch(r"[\w .-]+", name) else None
    return [version for version in _search(client, query) if version.name == name]


def _search(client: MlflowClient, query: str | None) -> list[ModelVersion]:
    found: list[ModelVersion] = []
    token = None
    while True:
        page = client.search_model_versions(query, page_token=token)
        found += page
        if not (token := page.token):
            return found


def _version(found: ModelVersion, aliases: Mapping[str, int]) -> Version:
    number = int(found.version)
    metrics, notes = metrics_of(found.tags)
    if PATH_TAG not in found.tags:
        notes.append("not made by rwkvctl: its scores and its training are unknown")
    return Version(
        name=found.name,
        version=number,
        run_id=found.run_id or "",
        aliases=sorted(alias for alias, target in aliases.items() if target == number),
        created=found.creation_timestamp,
        tags={k: v for k, v in fields(found.tags).items() if not k.startswith((SCORES_TAG, ELSEWHERE_TAG))},
        metrics=metrics,
        notes=notes,
    )


def model_names(client: MlflowClient) -> list[str]:
    names: list[str] = []
    token = None
    while True:
        page = client.search_registered_models(page_token=token)
        names += [model.name for model in page if not model.name.startswith(LOCK)]
        if not (token := page.token):
            return sorted(names)


def aliases_of(client: MlflowClient, name: str) -> dict[str, int]:
    """Where each alias of a model points; UserError if there is no such model."""
    names = model_names(client)
    if name not in names:
        raise UserError(f"no registered model {name!r}; {suggest(name, names, 'rwkvctl model list')}")
    return {alias: int(number) for alias, number in client.get_registered_model(name).aliases.items()}


def suggest(word: str, choices: Sequence[str], command: str) -> str:
    return did_you_mean(word, choices) if choices else f"there is none yet (`{command}`)"


def find_version(client: MlflowClient, name: str, version: int) -> ModelVersion:
    numbers = sorted(int(found.version) for found in versions_of(client, name))
    if version not in numbers:
        known = ", ".join(map(str, numbers)) or "none"
        raise UserError(f"model {name!r} has no version {version}; it has {known}")
    return client.get_model_version(name, str(version))


def run_of(client: MlflowClient, version: ModelVersion) -> Run | None:
    """The run that made a version; None where it has none, or `mlflow gc` has removed it."""
    from mlflow.exceptions import MlflowException

    if not version.run_id:
        return None
    try:
        return client.get_run(version.run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
