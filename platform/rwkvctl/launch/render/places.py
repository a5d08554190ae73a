"""Where a rendered job finds its files: a pod sees no folder of the machine that the job was rendered on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rwkvctl.base.paths import home
from rwkvctl.config.settings import Settings
from rwkvctl.config.specs.jobs import JOBS, JobSpec
from rwkvctl.config.specs.load import build
from rwkvctl.registry.references import is_weights_file

PATHS = {
    ("storage",): "",
    ("base", "storage"): "",
    ("data", "path"): "data",
    ("data",): "data",
    ("base", "data", "path"): "data",
    ("model", "encoder_weights"): "weights",
    ("base", "model", "encoder_weights"): "weights",
    ("model",): "models",
}
"""Fields that can name a file or a folder, and the folder below the volume for those from elsewhere."""
URIS = (("tracking", "uri"), ("base", "tracking", "uri"), ("study_storage",))
"""Fields that can name a database in a file."""


@dataclass(frozen=True)
class Placed:
    """A spec as its cluster sees it."""

    spec: JobSpec
    copies: tuple[tuple[str, str], ...] = ()
    """What has to be copied before the job starts: from here, to there."""


def volume_of(machine: Settings) -> tuple[str, str]:
    """Name of the persistent volume claim, and the folder that it is mounted on."""
    claim, _, mount = machine.volume.partition(":")
    return claim, mount.rstrip("/")


def in_pods(spec: JobSpec, machine: Settings) -> Placed:
    """The spec with its paths as pods see them.

    The volume is the home of rwkvctl there, so what lies below the home here is meant to lie below the volume. Anything
    from elsewhere gets a place below it, and what is on this machine has to be copied there. A database in a file is no
    pod's to share: the tracking server is then the cluster's own, a study stands in its run's folder.
    """
    _, mount = volume_of(machine)
    fields = spec.model_dump(mode="json", by_alias=True)
    copies: dict[str, str] = {}
    for path, folder in PATHS.items():
        text = get(fields, path)
        if text is not None and is_local(text, path):
            there = below_volume(text, folder, mount)
            put(fields, path, there)
            if folder and there != text and Path(text).exists():
                copies[text] = there
    for path in URIS:
        if (get(fields, path) or "").startswith("sqlite:"):
            put(fields, path, None)
    return Placed(build(JOBS[spec.job], fields, "--render"), tuple(copies.items()))


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


def below_volume(text: str, folder: str, mount: str) -> str:
    """A path's place on the volume."""
    if text == str(home()) or text.startswith(f"{home()}/"):
        return mount + text.removeprefix(str(home()))
    if Path(text).is_relative_to(mount):
        return text
    return f"{mount}/{folder}/{Path(text).name}" if folder else f"{mount}/runs"
