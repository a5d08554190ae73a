"""Which code made something."""

from __future__ import annotations

import hashlib
import os
import subprocess
from importlib.util import find_spec
from pathlib import Path

import rwkvctl

PACKAGES = ("biwkv", "rwkv_unet", "rwkvctl", "rwkv_jobs")
"""What one distribution installs."""
SOURCES = {".py", ".yaml", ".h", ".cpp", ".cu"}
"""Endings of the files that decide what a job does; compiled ones differ between machines that run the same code."""

COMMIT_VARIABLE = "RWKVCTL_COMMIT"
COMMAND_VARIABLE = "RWKVCTL_COMMAND"
"""The command line that a job was started by."""

_identities: dict[tuple[tuple[str, int, int, int], ...], str] = {}


def code_identity() -> str:
    """SHA-256, in hex, of the sources of our packages as this process finds them.

    Two machines have the same one exactly where they would run the same code, wherever it is installed and whatever its
    version says. Nothing is imported for it. The files are read again only when one of them has changed.
    """
    return identity_of({name: package_folders(name) for name in PACKAGES})


def package_folders(name: str) -> list[Path]:
    """Where a package lies; none when it is not installed."""
    try:
        spec = find_spec(name)
    except ValueError:  # a module without a spec has its name
        return []
    return [] if spec is None else [Path(folder) for folder in spec.submodule_search_locations or ()]


def identity_of(packages: dict[str, list[Path]]) -> str:
    """SHA-256, in hex, of the names and contents of the sources in the folders of each package."""
    files = {  # by the name that they have on every machine
        f"{name}/{path.relative_to(folder).as_posix()}": path
        for name, folders in packages.items()
        for folder in folders
        for path in folder.rglob("*")
        if path.suffix in SOURCES and path.is_file()
    }
    order = sorted(files)
    states = [files[name].stat() for name in order]
    key = tuple(
        (str(files[name]), state.st_size, state.st_mtime_ns, state.st_ctime_ns)
        for name, state in zip(order, states, strict=True)
    )
    if key not in _identities:
        total = hashlib.sha256()
        for name in order:
            content = files[name].read_bytes()
            total.update(f"{name}\0{len(content)}\0".encode("utf-8", "surrogateescape"))
            total.update(content)
        _identities[key] = total.hexdigest()
    return _identities[key]


def git_commit() -> str:
    """Commit of the code that runs, `unknown` when it does not run from a git checkout. Code that was sent to a cluster
    is told it by a variable."""
    return os.environ.get(COMMIT_VARIABLE) or git("rev-parse", "HEAD") or "unknown"


def git_dirty() -> bool:
    """Whether the sources of a git checkout differ from its commit."""
    return bool(git("status", "--porcelain", "--untracked-files=no"))


def in_checkout() -> bool:
    """Whether this code runs from a git checkout."""
    return bool(git("rev-parse", "HEAD"))


def git(*arguments: str) -> str:
    """What git says of the checkout that this code runs from; empty without one."""
    folder = Path(__file__).parent
    try:
        found = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return found.stdout.strip() if found.returncode == 0 else ""


def code_version() -> str:
    """Version and commit of this program, as `0.1.0 (1f3c...)`."""
    return f"{rwkvctl.__version__} ({git_commit()[:12]})"
