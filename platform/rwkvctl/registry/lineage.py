"""Where a version comes from: its run, its data, its code, its encoder, and where that comes from in turn."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from rwkvctl.base.errors import UserError
from rwkvctl.registry.tags import ENCODER, PATH_TAG, PULLED_FROM, PULLED_REVISION, WEIGHTS_TAG, fields, mapping
from rwkvctl.registry.versions import aliases_of, find_version, run_of
from rwkvctl.runs.mlflow_client import connect

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

REGISTERED = "models:/"


@dataclass(frozen=True)
class Origin:
    """One model and what made it; a field is empty where it is not recorded."""

    model: str
    """`models:/NAME/VERSION`, or how the encoder was named."""
    weights: str = ""
    """SHA-256."""
    run: str = ""
    """Name of the training run."""
    run_id: str = ""
    job: str = ""
    dataset: str = ""
    fingerprint: str = ""
    """Of the data's manifest."""
    split: str = ""
    data: str = ""
    """Where the data lay."""
    commit: str = ""
    program: str = ""
    """Version of rwkvctl."""
    spec: dict[str, Any] = field(default_factory=dict)
    encoder: Origin | None = None
    """What the training started from."""
    note: str = ""
    """Why no more is known."""


def lineage(reference: str, tracking_uri: str) -> Origin:
    """From `models:/NAME/VERSION` or `models:/NAME@ALIAS` back to the beginning.

    UserError for a reference to something else, or to what is not there.
    """
    if not reference.startswith(REGISTERED):
        raise UserError(f"{reference}: give a registered model, as models:/NAME/VERSION or models:/NAME@ALIAS")
    client = connect(tracking_uri)
    return origin(client, resolve(client, reference), seen=())


def resolve(client: MlflowClient, reference: str) -> ModelVersion:
    """The version that a reference names."""
    rest = reference.removeprefix(REGISTERED)
    name, at, alias = rest.rpartition("@")
    if at:
        aliases = aliases_of(client, name)
        if alias not in aliases:
            raise UserError(f"{reference}: no such alias; {name} has {', '.join(aliases) or 'none'}")
        return find_version(client, name, aliases[alias])
    name, slash, number = rest.rpartition("/")
    if not slash or not number.isdigit():
        raise UserError(f"{reference}: give models:/NAME/VERSION or models:/NAME@ALIAS")
    aliases_of(client, name)
    return find_version(client, name, int(number))


def origin(client: MlflowClient, version: ModelVersion, seen: tuple[str, ...]) -> Origin:
    uri, tags = f"{REGISTERED}{version.name}/{version.version}", fields(version.tags)
    if PATH_TAG not in tags:
        return Origin(uri, run_id=version.run_id or "", note="not made by rwkvctl: no more is recorded")
    spec = mapping(tags.get("spec", ""))
    run = run_of(client, version)
    of_run = {} if run is None else run.data.tags
    begun = mapping(tags.get(ENCODER, ""))
    reference = str(begun.get("reference") or (spec.get("model") or {}).get("encoder_weights") or "")
    return Origin(
        model=uri,
        weights=tags.get("weights_sha256", ""),
        run=tags.get("run", ""),
        run_id=version.run_id or "",
        job=str(spec.get("job", "")),
        dataset=tags.get("dataset", ""),
        fingerprint=tags.get("fingerprint", ""),
        split=tags.get("split", ""),
        data=str((spec.get("data") or {}).get("path") or ""),
        commit=tags.get("git_commit", ""),
        program=of_run.get("rwkvctl.version", ""),
        spec=spec,
        encoder=before(client, reference, str(begun.get("sha256", "")), (*seen, uri)) if reference else None,
        note=note_of(tags, gone=bool(version.run_id) and not of_run),
    )


def note_of(tags: Mapping[str, str], *, gone: bool) -> str:
    """Why no more is known of a version."""
    if PULLED_FROM in tags:
        revision = tags.get(PULLED_REVISION, "")
        return f"pulled from {tags[PULLED_FROM]}" + (f" at {revision[:12]}" if revision else "")
    return "its MLflow run is gone" if gone else ""


def before(client: MlflowClient, reference: str, sha256: str, seen: tuple[str, ...]) -> Origin:
    """What a training started from, followed further where it is a version that is still there: by its weights where
    these were noted, for an alias may have moved since."""
    found = with_weights(client, sha256)
    if found is None and reference.startswith(REGISTERED):
        try:
            found = resolve(client, reference)
        except UserError as error:
            return Origin(reference, weights=sha256, note=str(error))
    if found is None:
        return Origin(reference, weights=sha256, note=kind_of(reference))
    uri = f"{REGISTERED}{found.name}/{found.version}"
    made = Origin(uri, note="listed above already") if uri in seen else origin(client, found, seen)
    if not sha256 and "@" in reference:
        made = replace(made, note=f"{reference} points there today; where it did at the training is not recorded")
    return made


def with_weights(client: MlflowClient, sha256: str) -> ModelVersion | None:
    """The first version that has these weights."""
    if not re.fullmatch(r"[0-9a-f]{64}", sha256):
        return None
    found = client.search_model_versions(f"tags.`{WEIGHTS_TAG}` = '{sha256}'")
    return min(found, key=lambda version: (version.creation_timestamp, version.name), default=None)


def kind_of(reference: str) -> str:
    return "weights that timm publishes" if reference == "pretrained" else "a run, a folder or a file; not registered"


def lines(origin: Origin, indent: str = "") -> list[str]:
    """As text, the encoder's beneath its model's."""
    data = origin.dataset and f"{origin.dataset}, fingerprint {origin.fingerprint[:12]}, split {origin.split or '?'}"
    rows = {
        "run": " ".join(filter(None, [origin.run, origin.run_id and f"(MLflow {origin.run_id})"])),
        "job": origin.job,
        "data": ", ".join(filter(None, [data, origin.data])),
        "code": " ".join(filter(None, [origin.commit, origin.program and f"(rwkvctl {origin.program})"])),
        "weights": origin.weights[:12],
        "note": origin.note,
    }
    found = [f"{indent}{origin.model}", *(f"{indent}  {name:8} {text}" for name, text in rows.items() if text)]
    if origin.encoder is not None:
        found += [f"{indent}  encoder", *lines(origin.encoder, f"{indent}    ")]
    return found
