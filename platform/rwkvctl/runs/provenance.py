"""What a run was started with: the command line, the code with all that was changed in it, the installed libraries.

environment.txt   Python, platform and every distribution, as `name==version`; pip reads it as requirements
code.diff         what differs from the git commit; absent where nothing does, or the code is not in a checkout
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from functools import cache
from pathlib import Path

import rwkvctl
from rwkvctl.base import lineage
from rwkvctl.base.files import write_bytes
from rwkvctl.base.uris import mask
from rwkvctl.config.specs.changes import few
from rwkvctl.runs.journal import Journal

ENVIRONMENT = "environment.txt"
DIFF = "code.diff"
LONGEST_DIFF = 2_000_000
"""Characters that are kept of a difference; more is generated, not written."""


def record(journal: Journal, run_dir: Path, job: str) -> None:
    """Tags and files of a start; a run that goes on with other libraries is told so."""
    if (changed := note_environment(run_dir / ENVIRONMENT)) != []:
        journal.event("message", text=f"warning: libraries changed since the run was last started: {few(changed)}")
    note_diff(run_dir)
    journal.tags(
        {
            "rwkvctl.version": rwkvctl.__version__,
            "rwkvctl.code": lineage.code_identity(),
            "rwkvctl.command": os.environ.get(lineage.COMMAND_VARIABLE, ""),
            "mlflow.source.name": f"rwkvctl {job}",
            "mlflow.source.git.commit": lineage.git_commit(),
        }
    )
    for name in (ENVIRONMENT, DIFF):
        if (run_dir / name).exists():
            journal.artifact(run_dir / name)


def note_environment(path: Path) -> list[str]:
    """Write the list of what is installed; returns what differs from the one that was there, as `torch 2.1 -> 2.2`."""
    content = environment()
    before, now = read(path), pins(content)
    write_bytes(path, content.encode())
    names = sorted(before.keys() | now.keys()) if before else []
    return [f"{n} {before.get(n, 'absent')} -> {now.get(n, 'absent')}" for n in names if before.get(n) != now.get(n)]


@cache
def environment() -> str:
    """One line a distribution, by name; looked for once a process, which many trials may share."""
    found = {
        re.sub(r"[-_.]+", "-", each.metadata["Name"]).lower(): each.version
        for each in importlib.metadata.distributions()
        if each.metadata["Name"]
    }
    head = f"# Python {platform.python_version()} on {platform.platform()}\n"
    return head + "".join(f"{name}=={version}\n" for name, version in sorted(found.items()))


def read(path: Path) -> dict[str, str]:
    try:
        return pins(path.read_text())
    except FileNotFoundError:
        return {}


def pins(text: str) -> dict[str, str]:
    """The version of each distribution."""
    lines = (line.partition("==") for line in text.splitlines() if not line.startswith("#"))
    return {name: version for name, _, version in lines}


def note_diff(run_dir: Path) -> None:
    """Leave what was changed in the code since its commit. On a cluster the code comes without its checkout: then
    what the machine that sent it has left stays."""
    if diff := mask(lineage.git("diff", "--no-ext-diff", "HEAD"))[:LONGEST_DIFF]:
        write_bytes(run_dir / DIFF, f"{diff}\n".encode())
    elif lineage.in_checkout():
        (run_dir / DIFF).unlink(missing_ok=True)
