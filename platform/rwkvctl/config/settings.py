"""What a person sets once per machine: cluster address, tracking server, data root, storage.

Kept in `<home>/config.yaml`; environment variables win over the file, command-line options over both.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, ValidationError, field_validator

from rwkvctl.base import paths, uris
from rwkvctl.base.errors import UserError
from rwkvctl.base.files import write_bytes
from rwkvctl.base.paths import config_file, home
from rwkvctl.config.specs.base import Address, Spec, describe, problems
from rwkvctl.config.specs.places import check_address, check_folder, check_mirrors, check_storage

ENVIRONMENT = {
    "address": "RAY_ADDRESS",
    "tracking_uri": "MLFLOW_TRACKING_URI",
    "data_root": "RWKVCTL_DATA_ROOT",
    "storage": "RWKVCTL_STORAGE",
    "cache_dir": "RWKVCTL_CACHE",
    "cache_gb": "RWKVCTL_CACHE_GB",
    "decoded_gb": "RWKVCTL_DECODED_GB",
    "mirrors": "RWKVCTL_MIRRORS",
}
PATHS = ("data_root", "storage", "cache_dir")


class Settings(Spec):
    """The settings of this machine; every field has a default that works on a laptop."""

    address: Address | None = None
    """Ray cluster: `host:port`, or `http://host:8265` for its job server; null starts Ray on this machine."""
    tracking_uri: Address = Field(default_factory=lambda: f"sqlite:///{home() / 'mlflow.db'}")
    """MLflow server or database; credentials are read from the environment (MLFLOW_TRACKING_USERNAME, PGPASSWORD)."""
    data_root: Address = Field(default_factory=lambda: str(home() / "data"))
    """Every prepared data set has its place here: `<data_root>/<dataset>`."""
    storage: Address = Field(default_factory=lambda: str(home() / "runs"))
    """Where runs are kept; a cluster needs a folder that all its nodes see, or s3://bucket/prefix."""
    cache_dir: Address = Field(default_factory=lambda: str(paths.cache_dir()))
    """Where shards and runs of object stores are kept on this machine."""
    cache_gb: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 100
    """Gigabytes that shards may take; the longest unused ones are deleted first."""
    decoded_gb: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 10
    """Gigabytes that decoded training samples may take in `cache_dir`; 0 keeps none."""
    mirrors: str | None = None
    """Where runs are shown beside MLflow: `tensorboard`, `wandb`, or both with a comma between; null is nowhere."""
    gpus_per_node: Annotated[int, Field(ge=0)] | None = None
    """Workers per node of a cluster; null asks the cluster."""
    queue: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.,-]*$")] | None = None
    """Queue of rendered jobs: a Kueue LocalQueue, or a Slurm partition; null is the cluster's default."""
    image: Annotated[Address, Field(pattern=r"^[A-Za-z0-9][\w./:@-]*$")] | None = None
    """Container image of rendered Kubernetes jobs; null is `rwkvctl:VERSION`, as `infra/Dockerfile` builds it."""
    volume: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]*:(/[\w.-]+)+$")] = "rwkvctl:/mnt/rwkvctl"
    """Persistent volume claim of rendered Kubernetes jobs, and where it is mounted: the home of rwkvctl there."""
    credentials: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")] = "rwkvctl"
    """Name of the Kubernetes Secret that rendered jobs take passwords and keys from; never a password itself."""
    worker_memory_gb: Annotated[int, Field(ge=1)] = 16
    """Memory of one training worker and its loader processes in rendered jobs."""

    _address = field_validator("address")(check_address)
    _storage = field_validator("storage")(check_storage)
    _cache = field_validator("cache_dir")(check_folder)

    @field_validator("mirrors")
    @classmethod
    def _mirrors(cls, value: str | None) -> str | None:
        return ",".join(check_mirrors(value)) or None if value else None


def load() -> Settings:
    """The settings in force: defaults, then the file, then the environment."""
    in_file = read_file()
    in_environment = {key: uris.to_environment(name) for key, name in ENVIRONMENT.items() if os.environ.get(name)}
    try:
        settings = Settings.model_validate(in_file | in_environment)
    except ValidationError as error:
        raise UserError(blame(error, in_environment)) from None
    return settings.model_copy(update={key: absolute(getattr(settings, key)) for key in PATHS})


def changed(settings: Settings, **fields: str) -> Settings:
    """With other values, from options of a command; UserError for one that cannot be."""
    try:
        return Settings.model_validate(settings.model_dump() | fields)
    except ValidationError as error:
        raise UserError(f"--{problems(error, Settings)}") from None


def blame(error: ValidationError, in_environment: dict[str, str]) -> str:
    """Every mistake with the variable that it stands in, those of the file with the file's path."""
    by_variable = [item for item in error.errors() if item["loc"] and item["loc"][0] in in_environment]
    if not by_variable:
        return f"{config_file()}: {problems(error, Settings)}"
    lines = [describe(item, Settings) for item in by_variable]
    return "; ".join(
        f"{ENVIRONMENT[str(item['loc'][0])]}: {line.partition(': ')[2]}"
        for item, line in zip(by_variable, lines, strict=True)
    )


def absolute(path: str) -> str:
    """A local path made absolute, so that it means the same in every process; a URL as it is."""
    return path if "://" in path else str(Path(path).expanduser().absolute())


def read_file() -> dict[str, Any]:
    """The settings file as it is; empty when there is none."""
    path = config_file()
    if not path.exists():
        return {}
    try:
        values = yaml.safe_load(path.read_text()) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: not valid YAML ({reason}); fix it or delete it") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: must hold `key: value` lines, not a {type(values).__name__}")
    return values


def save(key: str, value: str | None) -> Settings:
    """Set one key in the file (null removes it) and return what is in force now."""
    if key not in Settings.model_fields:
        raise UserError(f"config key {key!r} is unknown; the keys are {', '.join(Settings.model_fields)}")
    if value is not None and key in PATHS:
        value = absolute(value)  # not relative to wherever the next command is typed
    values = read_file() | {key: value}
    values = {name: content for name, content in values.items() if content is not None}
    try:
        Settings.model_validate(values)
    except ValidationError as error:
        raise UserError(problems(error, Settings)) from None
    write_bytes(config_file(), yaml.safe_dump(values, sort_keys=True).encode())
    return load()
