"""The model folder of a registered version, fetched once and kept in the cache."""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from rwkvctl.base.errors import UserError
from rwkvctl.base.paths import cache_dir
from rwkvctl.models import bundle
from rwkvctl.registry.tags import PATH_TAG, WEIGHTS_TAG
from rwkvctl.registry.versions import aliases_of, find_version, suggest, versions_of
from rwkvctl.runs.mlflow_client import connect

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

_URI = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>\d+|latest))")


def downloaded(uri: str, tracking_uri: str) -> Path:
    """The local model folder of `models:/name@alias`, `models:/name/3` or `models:/name/latest`.

    It is downloaded once; `bundle.load` then verifies that the files are those of the version.

    Raises:
        UserError: a URI of another form, or one that does not exist (with near matches).
    """
    parts = _URI.fullmatch(uri)
    if parts is None:
        raise UserError(f"model URI {uri!r}: write models:/NAME@ALIAS, models:/NAME/VERSION or models:/NAME/latest")
    client = connect(tracking_uri)
    version = _version_of(client, parts)
    path, run_id = version.tags.get(PATH_TAG), version.run_id
    if path is None or not run_id:
        return _foreign(uri, version, tracking_uri)
    kept = cache_dir() / "models" / f"{run_id}-{version.tags.get(WEIGHTS_TAG, '')[:12]}"

    def fetch(folder: str) -> str:
        place = client.get_model_version_download_uri(version.name, str(version.version))
        return _fetch(f"{place.rstrip('/')}/{path}", folder, tracking_uri)

    if not (kept / bundle.INFO_NAME).exists():
        _download(uri, fetch, kept, f"MLflow no longer has them (was the logged model of run {run_id} deleted?)")
    return kept


def pinned(uri: str, tracking_uri: str) -> str:
    """`models:/name/3` of what an alias, or `latest`, is at this moment. UserError as in `downloaded`."""
    parts = _URI.fullmatch(uri)
    if parts is None:
        raise UserError(f"model URI {uri!r}: write models:/NAME@ALIAS, models:/NAME/VERSION or models:/NAME/latest")
    version = _version_of(connect(tracking_uri), parts)
    return f"models:/{version.name}/{version.version}"


def _foreign(uri: str, version: ModelVersion, tracking_uri: str) -> Path:
    """The model folder of a version that another client made from one of our MLflow models; else UserError, which says
    what the version is."""
    source = (version.source or "").rstrip("/")
    flavors = _flavors(source, tracking_uri)
    artifacts = flavors.get("python_function", {}).get("artifacts", {})
    inside = artifacts.get("bundle", {}).get("path") if isinstance(artifacts, dict) else None
    if inside is None:
        kinds = sorted(name for name in flavors if name != "python_function") or sorted(flavors)
        what = (
            f"an MLflow model of kind {', '.join(kinds)}"
            if kinds
            else f"files at {source[:80] or 'an unknown location'}"
        )
        raise UserError(
            f"{uri}: is {what}, made by another program; rwkvctl runs only models that it has registered itself"
        )

    def fetch(folder: str) -> str:
        return _fetch(f"{source}/{inside}", folder, tracking_uri)

    kept = cache_dir() / "models" / hashlib.sha256(f"{source}/{inside}".encode()).hexdigest()[:32]
    if not (kept / bundle.INFO_NAME).exists():
        _download(uri, fetch, kept, f"{source[:80]} no longer has them")
    return kept


def _flavors(source: str, tracking_uri: str) -> dict[str, Any]:
    """How an MLflow model can be loaded, from its file `MLmodel`; empty where there is none."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            content = yaml.safe_load(Path(_fetch(f"{source}/MLmodel", folder, tracking_uri)).read_text())
        except Exception:  # every kind of store has errors of its own for what is not there
            return {}
    found = content.get("flavors") if isinstance(content, dict) else None
    return found if isinstance(found, dict) else {}


def _fetch(source: str, folder: str, tracking_uri: str) -> str:
    from mlflow.artifacts import download_artifacts

    return download_artifacts(artifact_uri=source, dst_path=folder, tracking_uri=tracking_uri)


def _version_of(client: MlflowClient, parts: re.Match[str]) -> ModelVersion:
    name, alias, number = parts["name"], parts["alias"], parts["version"]
    aliases = aliases_of(client, name)
    if alias is not None:
        if alias not in aliases:
            hint = suggest(alias, sorted(aliases), f"rwkvctl model promote {name} VERSION --alias {alias}")
            raise UserError(f"model {name!r} has no alias {alias!r}; {hint}")
        return client.get_model_version(name, str(aliases[alias]))
    if number == "latest":
        numbers = [int(found.version) for found in versions_of(client, name)]
        return find_version(client, name, max(numbers, default=0))
    return find_version(client, name, int(number))


def _download(uri: str, fetch: Callable[[str], str], target: Path, gone: str) -> None:
    """Fetch a model folder; it appears under `target` complete, also when two processes fetch it at once.

    `fetch` downloads it into a folder and says where; `gone` is what to say when it is not there.
    """
    temporary = target.with_name(f".{target.name[:12]}.{uuid.uuid4().hex[:8]}")
    temporary.mkdir(parents=True)
    try:
        found = Path(fetch(str(temporary)))
        if not target.exists():
            with contextlib.suppress(FileExistsError, OSError):
                found.rename(target)
    except Exception as error:  # every kind of store has errors of its own
        reason = " ".join(str(error).split())[:100]
        raise UserError(f"{uri}: cannot download the files of this version ({reason}): {gone}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    if not (target / bundle.INFO_NAME).exists():
        raise UserError(f"{uri}: the files of this version are not a complete model folder: {gone}")
