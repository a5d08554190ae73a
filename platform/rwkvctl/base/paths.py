"""Where things lie: one home for everything that rwkvctl keeps on a machine."""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """`RWKVCTL_HOME`, by default `~/.rwkvctl`: config, runs, shards, tracking database, caches."""
    return Path(os.environ.get("RWKVCTL_HOME") or "~/.rwkvctl").expanduser().absolute()


def config_file() -> Path:
    """The settings that `rwkvctl config` shows and changes."""
    return home() / "config.yaml"


def cache_dir() -> Path:
    """What can be thrown away at any time."""
    return home() / "cache"
