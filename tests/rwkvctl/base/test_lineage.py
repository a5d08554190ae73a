"""Which code runs: the same answer for the same sources, wherever they are installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rwkvctl.base import lineage

IGNORED = shutil.ignore_patterns("__pycache__", "*.so")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Our packages copied to another place, side by side, as a wheel installs them."""
    root = tmp_path_factory.mktemp("site-packages")
    for name in lineage.PACKAGES:
        shutil.copytree(lineage.package_folders(name)[0], root / name, ignore=IGNORED)
    return root


def identity_in(root: Path) -> str:
    """As a process finds it that has the packages in `root` and no other library."""
    code = "from rwkvctl.base.lineage import code_identity; print(code_identity())"
    environment = os.environ | {"PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-P", "-S", "-c", code]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()


def test_the_place_of_the_code_does_not_matter_and_every_source_does(installed: Path, tmp_path: Path):
    assert identity_in(installed) == lineage.code_identity()
    seen = {lineage.code_identity()}
    for changed in ("rwkv_jobs/recipes/acdc.yaml", "biwkv/csrc/wkv.cpp", "rwkvctl/base/names.py", "rwkv_unet/model.py"):
        path = installed / changed
        before = path.read_bytes()
        path.write_bytes(before.replace(b"a", b"b", 1))  # of the same size
        seen.add(identity_in(installed))
        path.write_bytes(before)
    assert len(seen) == 5
    shutil.move(installed / "rwkv_jobs", tmp_path / "rwkv_jobs")
    assert identity_in(installed) not in seen, "a package that is missing"
    shutil.move(tmp_path / "rwkv_jobs", installed / "rwkv_jobs")
    assert identity_in(installed) == lineage.code_identity()


def test_compiled_files_do_not_count_and_a_change_is_seen_in_the_same_process(tmp_path: Path):
    source = tmp_path / "package" / "one.py"
    source.parent.mkdir()
    source.write_text("a = 1")
    first = lineage.identity_of({"package": [source.parent]})
    (source.parent / "_kernel.so").write_text("machine code")
    (source.parent / "one.pyc").write_text("byte code")
    assert lineage.identity_of({"package": [source.parent]}) == first
    source.write_text("a = 2")
    second = lineage.identity_of({"package": [source.parent]})
    source.rename(source.with_name("two.py"))
    assert len({first, second, lineage.identity_of({"package": [source.parent]})}) == 3
