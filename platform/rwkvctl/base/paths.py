"""Where things lie: one home for everything that rwkvctl keeps on a machine."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import unquote_to_bytes

from rwkvctl.base.errors import UserError


def home() -> Path:
    """`RWKVCTL_HOME`, by default `~/.rwkvctl`: config, runs, shards, tracking database, caches."""
    found = Path(os.environ.get("RWKVCTL_HOME") or "~/.rwkvctl").expanduser().absolute()
    for folder in (found, *found.parents):
        if folder.exists():
            if not folder.is_dir():
                raise UserError(f"home {found}: {folder} is a file; set RWKVCTL_HOME to a folder")
            break
    return found


def as_text(path: str | os.PathLike[str]) -> str:
    """A path as text for specs, results and the screen: itself, or as a file:// URI when its bytes are not UTF-8."""
    text = os.fspath(path)
    try:
        text.encode()
    except UnicodeEncodeError:
        return Path(text).absolute().as_uri()
    return text


def from_text(text: str) -> Path:
    """The path of `as_text`."""
    return Path(os.fsdecode(unquote_to_bytes(text.removeprefix("file://"))) if text.startswith("file://") else text)


def config_file() -> Path:
    """The settings that `rwkvctl config` shows and changes."""
    return home() / "config.yaml"


def cache_dir() -> Path:
    """What can be thrown away at any time."""
    return home() / "cache"
