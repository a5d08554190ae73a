"""Files that are whole or absent, also after a kill."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rwkvctl.base.files import remove_leftovers

KILLED = """
import os, signal
from rwkvctl.base.files import {writer}
with {writer}("{path}") as where:
    where.write(b"half") if hasattr(where, "write") else where.write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


@pytest.mark.parametrize("writer", ["atomic_open", "atomic_path"])
def test_what_a_killed_writer_leaves_is_removed_by_its_name_and_nothing_else(tmp_path: Path, writer: str):
    code = KILLED.format(writer=writer, path=tmp_path / "scan.nii.gz")
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    [left] = names(tmp_path)
    others = [".scan.nii.gz", ".scan.nii.gz.tmp", left.replace("scan", "other")]
    for name in others:
        (tmp_path / name).touch()
    remove_leftovers(tmp_path, ["ct.nii.gz"])
    assert left in names(tmp_path)
    remove_leftovers(tmp_path, ["ct.nii.gz", "scan.nii.gz"])
    assert sorted(names(tmp_path)) == sorted(others)
