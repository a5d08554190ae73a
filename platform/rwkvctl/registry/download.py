"""The model folder of a registered version, fetched once and kept in the cache."""

from __future__ import annotations

import contextlib
import re
import shutil
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from rwkvctl.base.errors import UserError
from rwkvctl.base.paths import cache_dir
from rwkvctl.models import bundle
from rwkvctl.registry.versions import PATH_TAG, WEIGHTS_TAG, aliases_of, find_version, suggest
from rwkvctl.runs.mlflow_client import connect

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

_URI = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>\d+|latest))")


def downloaded(uri: str, tracking_uri: str) -> Path:
    """The local model folder of `models:/name@alias`, `models:/name/3` or `models:/name/latest`.

    It is downloaded once; the files are those of the version or it is a UserError, by `bundle.load`.

    Raises:
        UserError: a URI of another form, or one that does not exist (with near matches).
    """
    parts = _URI.fullmatch(uri)
    if parts is None:
        raise UserError(f"model URI {uri!r}: write models:/NAME@ALIAS, models:/NAME/VERSION or models:/NAME/latest")
    client = connect(tracking_uri)
    version = _version_of(client, parts)
    path = version.tags.get(PATH_TAG)
    if path is None or not version.run_id:
        raise UserError(f"{uri}: version {version.version} was not registered by rwkvctl and has no model folder")
    kept = cache_dir() / "models" / f"{version.run_id}-{version.tags[WEIGHTS_TAG][:12]}"
    if not (kept / bundle.INFO_NAME).exists():
        _download(client, version.run_id, path, kept)
    return kept


def _version_of(client: MlflowClient, parts: re.Match[str]) -> ModelVersion:
    name, alias, number = parts["name"], parts["alias"], parts["version"]
    aliases = aliases_of(client, name)
    if alias is not None:
        if alias not in aliases:
            hint = suggest(alias, sorted(aliases), f"rwkvctl model promote {name} VERSION --alias {alias}")
            raise UserError(f"model {name!r} has no alias {alias!r}; {hint}")
        return client.get_model_version(name, str(aliases[alias]))
    if number == "latest":
        numbers = [int(found.version) for found in client.search_model_versions(f"name='{name}'")]
        return find_version(client, name, max(numbers, default=0))
    return find_version(client, name, int(number))


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
