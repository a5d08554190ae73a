"""What a registry holds: models, their versions and aliases. Nothing here changes anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rwkvctl.base.errors import UserError
from rwkvctl.base.suggestions import did_you_mean
from rwkvctl.runs.mlflow_client import connect

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

WEIGHTS_TAG = "weights_sha256"
FINGERPRINT_TAG = "fingerprint"
PATH_TAG = "rwkvctl.bundle"  # Where the model folder lies among the run's artifacts.
METRIC_TAG = "metric."


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


def list_models(tracking_uri: str) -> list[Model]:
    """All registered models, by name."""
    client = connect(tracking_uri)
    models = []
    for name in model_names(client):
        numbers = [int(version.version) for version in client.search_model_versions(f"name='{name}'")]
        aliases = {alias: int(number) for alias, number in client.get_registered_model(name).aliases.items()}
        models.append(Model(name, len(numbers), max(numbers, default=None), aliases))
    return models


def show(name: str, tracking_uri: str) -> list[Version]:
    """The versions of a registered model, the newest first; UserError with near matches if there is none."""
    client = connect(tracking_uri)
    aliases = aliases_of(client, name)
    versions = [_version(found, aliases) for found in client.search_model_versions(f"name='{name}'")]
    return sorted(versions, key=lambda version: -version.version)


def all_versions(tracking_uri: str) -> list[Version]:
    """Every version of every registered model that has the spec of its training in its tags."""
    client = connect(tracking_uri)
    found = [version for name in model_names(client) for version in client.search_model_versions(f"name='{name}'")]
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


def model_names(client: MlflowClient) -> list[str]:
    names: list[str] = []
    token = None
    while True:
        page = client.search_registered_models(page_token=token)
        names += [model.name for model in page]
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
    numbers = sorted(int(found.version) for found in client.search_model_versions(f"name='{name}'"))
    if version not in numbers:
        known = ", ".join(map(str, numbers)) or "none"
        raise UserError(f"model {name!r} has no version {version}; it has {known}")
    return client.get_model_version(name, str(version))
