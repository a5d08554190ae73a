"""Which code made something."""

from __future__ import annotations

import subprocess
from pathlib import Path


def git_commit() -> str:
    """Commit of the code that runs, `unknown` when it does not run from a git checkout."""
    folder = Path(__file__).parent
    try:
        found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "unknown"
    return found.stdout.strip() if found.returncode == 0 else "unknown"


def code_version() -> str:
    """Version and commit of this program, as `0.1.0 (1f3c...)`."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        number = version("rwkvctl")
    except PackageNotFoundError:  # run from a source tree
        number = "unknown"
    return f"{number} ({git_commit()[:12]})"
