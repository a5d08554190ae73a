"""Where a rendered job finds its files: a pod sees no folder of the machine that the job was rendered on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rwkvctl.base.errors import UserError
from rwkvctl.base.paths import home
from rwkvctl.config.settings import Settings
from rwkvctl.config.specs.jobs import JOBS, JobSpec
from rwkvctl.config.specs.load import build
from rwkvctl.registry.references import is_weights_file

PATHS = (
    ("storage",),
    ("data", "path"),
    ("data",),
    ("model", "encoder_weights"),
    ("model",),
    ("base", "storage"),
    ("base", "data", "path"),
    ("base", "model", "encoder_weights"),
)
"""Fields that can name a file or a folder."""
URIS = (("tracking", "uri"), ("base", "tracking", "uri"), ("study_storage",))
"""Fields that can name a database in a file."""


def volume_of(machine: Settings) -> tuple[str, str]:
    """Name of the persistent volume claim, and the folder that it is mounted on."""
    claim, _, mount = machine.volume.partition(":")
    return claim, mount.rstrip("/")


def in_pods(spec: JobSpec, machine: Settings) -> JobSpec:
    """The spec with its paths as pods see them.

    The volume is the home of rwkvctl there, so what lies below the home here is meant to lie below the volume.
    UserError for any other folder that is not below it, and for a database in a file.
    """
    _, mount = volume_of(machine)
    fields = spec.model_dump(mode="json", by_alias=True)
    for path in PATHS:
        text = get(fields, path)
        if text is not None and is_local(text, path):
            put(fields, path, below_volume(text, ".".join(path), mount))
    for path in URIS:
        text = get(fields, path)
        if text is not None and text.startswith("sqlite:"):
            put(fields, path, None if f"{home()}/" in text else refuse_file(text, ".".join(path)))
    return build(JOBS[spec.job], fields, "--render")


def get(fields: dict[str, Any], path: tuple[str, ...]) -> str | None:
    """The text at a path; None where there is something else, or nothing."""
    node: Any = fields
    for key in path:
        node = node.get(key) if isinstance(node, dict) else None
    return node if isinstance(node, str) else None


def put(fields: dict[str, Any], path: tuple[str, ...], value: str | None) -> None:
    for key in path[:-1]:
        fields = fields[key]
    fields[path[-1]] = value


def is_local(text: str, path: tuple[str, ...]) -> bool:
    """Whether a text is a path: models and weights can be names of runs and URIs as well."""
    if "://" in text or text.startswith("models:/"):
        return False
    return path[-1] in ("storage", "path", "data") or text.startswith("/") or is_weights_file(text)


def below_volume(text: str, field: str, mount: str) -> str:
    if text == str(home()) or text.startswith(f"{home()}/"):
        return mount + text.removeprefix(str(home()))
    if Path(text).is_relative_to(mount):
        return text
    raise UserError(
        f"{field} {text}: no pod sees this folder; copy it to the volume and give its path there, {mount}/..., or an "
        "s3:// URI (the volume: rwkvctl config set volume CLAIM:FOLDER)"
    )


def refuse_file(text: str, field: str) -> str:
    raise UserError(f"{field} {text}: pods cannot share a database in a file; give the URI of a server")
