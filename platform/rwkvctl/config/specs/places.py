"""Where things are: what an address of a cluster, a folder of runs and the mirrors of a run look like."""

from __future__ import annotations

import re
from typing import Any

ADDRESS = re.compile(r"(https?://\S+)|(\[[0-9A-Fa-f:.]+\]|[^\s:/\[\]]+):(?P<port>\d{1,5})/?")


def check_address(value: str | None) -> str | None:
    """`host:port` of a Ray cluster, or the URL of its job server; ValueError for anything else."""
    if value is None or value == "auto":
        return value
    if value.startswith("ray://"):
        raise ValueError(
            "must be HOST:6379 of the cluster's head, or http://HOST:8265 of its job server: Ray Client (ray://) is "
            "not supported"
        )
    found = ADDRESS.fullmatch(value)
    if found is None or (found["port"] and not 0 < int(found["port"]) < 65536):
        raise ValueError("must be HOST:PORT of a Ray cluster, or http://HOST:8265 of its job server")
    return value


def check_folder(value: str | None) -> str | None:
    """A folder of this machine; ValueError for a URL."""
    if value is not None and "://" in value:
        raise ValueError("must be a folder of this machine, not a URL")
    return value


def check_storage(value: str | None) -> str | None:
    """A folder that all workers see, or s3://bucket/prefix without the slash at its end; ValueError for another URL."""
    if value is None or "://" not in value:
        return value
    scheme, _, rest = value.partition("://")
    parts = rest.rstrip("/").split("/")
    if scheme != "s3" or not all(parts) or {".", ".."} & set(parts) or set(rest) & set("?#@"):
        raise ValueError("must be a folder that all workers see, or s3://bucket/prefix")
    return value.rstrip("/")


MIRRORS = ("tensorboard", "wandb")
"""What a run's journal can be shown in beside MLflow."""


def check_mirrors(value: Any) -> Any:
    """`tensorboard,wandb`, or a list, as a list without repetitions; ValueError for anything else."""
    names = [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value
    for name in names if isinstance(names, list | tuple) else []:
        if name not in MIRRORS:
            raise ValueError(f"{str(name)[:40]!r} is none of {', '.join(MIRRORS)}")
    return tuple(dict.fromkeys(names)) if isinstance(names, list | tuple) else names
