"""The sdist and the wheel, as they would be uploaded: built, installed somewhere else, and used from there.

Nothing is downloaded. The new environments get links to the libraries of this one, but only to those that the metadata
of the wheel asks for, so a dependency that is not declared is missing there.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest

from rwkvctl.config.specs import load
from rwkvctl.config.specs.study import study_names

packaging = pytest.importorskip("packaging.requirements")
pytest.importorskip("hatchling")
pytest.importorskip("pip")
pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
COMPILER = shutil.which("c++")
PACKAGES = ("biwkv", "rwkv_jobs", "rwkv_unet", "rwkvctl")


class Built(NamedTuple):
    sdist: Path
    wheel: Path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The sdist of this tree, and the wheel of that sdist: a file that only the tree has is missed."""
    out = tmp_path_factory.mktemp("dist")
    hatch(ROOT, out, "sdist")
    (sdist,) = out.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(out, filter="data")
    quick = out / "quick-c++"
    quick.write_text('#!/bin/sh\nexec c++ "$@" -DBIWKV_BASELINE -O0\n')  # optimising takes ten seconds
    quick.chmod(0o755)
    hatch(out / sdist.name.removesuffix(".tar.gz"), out, "wheel", **({"CXX": str(quick)} if COMPILER else {}))
    (wheel,) = out.glob("*.whl")
    return Built(sdist, wheel)


def hatch(source: Path, out: Path, target: str, **environment: str) -> None:
    run([sys.executable, "-m", "hatchling", "build", "-t", target, "-d", out], source, **os.environ | environment)


def run(command: list[str | Path], cwd: Path, **environment: str) -> str:
    """What a command prints; it must end with 0."""
    words = list(map(str, command))
    done = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout


# What is inside -------------------------------------------------------------------------------------------------------


def test_the_wheel_holds_the_four_packages_their_files_and_nothing_else(built: Built):
    names = zipfile.ZipFile(built.wheel).namelist()
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == set(PACKAGES)
    assert {f"{package}/py.typed" for package in PACKAGES} <= set(names)
    assert [name for name in names if "test" in Path(name).parts[-1] and name.endswith(".py")] == []
    for folder, known in (
        ("recipes", load.recipe_names()),
        ("spaces", load.space_names()),
        ("studies", study_names()),
    ):
        found = {Path(name).stem for name in names if name.startswith(f"rwkv_jobs/{folder}/")}
        assert found == set(known)


@pytest.mark.skipif(not COMPILER, reason="no C++ compiler")
def test_the_wheel_holds_the_compiled_kernel_and_says_for_which_machines(built: Built):
    assert "biwkv/_biwkv_cpu.so" in zipfile.ZipFile(built.wheel).namelist()
    assert "-py3-none-linux_" in built.wheel.name or "-py3-none-macosx_" in built.wheel.name


def test_the_sdist_holds_what_builds_tests_and_explains_it(built: Built):
    with tarfile.open(built.sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {"hatch_build.py", "constraints.txt", "Makefile", "LICENSE", "README.md", "tests/conftest.py"}
    assert wanted <= names
    assert [name for name in names if name.endswith(".so") or name.startswith((".venv", "shards"))] == []


# An environment that has only what the wheel asks for -----------------------------------------------------------------


class Environment:
    """A new virtual environment with the wheel, and links to what it requires."""

    def __init__(self, folder: Path, wheel: Path, extras: set[str]):
        run([sys.executable, "-m", "venv", "--without-pip", folder], cwd=folder.parent, **os.environ)
        self.bin, self.work = folder / "bin", folder / "work"
        self.work.mkdir()
        (site,) = folder.glob("lib/python3.*/site-packages")
        pip = [sys.executable, "-m", "pip", "--python", self.bin / "python", "install", "--quiet"]
        run([*pip, "--no-deps", "--no-index", wheel], cwd=folder, **os.environ)
        for distribution in required(site, extras):
            for top in {file.parts[0] for file in distribution.files or []} - {"..", "__pycache__"}:
                if not top.endswith(".pth") and not (site / top).exists():
                    (site / top).symlink_to(distribution.locate_file(top))

    def run(self, program: str, *words: str | Path) -> str:
        return run([self.bin / program, *words], self.work, **self.variables())

    def variables(self) -> dict[str, str]:
        """No PYTHONPATH, and a home of its own."""
        return {"PATH": os.environ["PATH"], "HOME": str(self.work), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


def required(site: Path, extras: set[str]) -> list[importlib.metadata.Distribution]:
    """Everything that the rwkvctl in `site` needs with `extras`, and what that needs in its turn."""
    (ours,) = importlib.metadata.distributions(name="rwkvctl", path=[str(site)])
    found: dict[tuple[str, str], importlib.metadata.Distribution] = {}
    todo = [(ours, extra) for extra in ("", *extras)]
    while todo:
        distribution, extra = todo.pop()
        if (distribution.name, extra) in found:
            continue
        found[distribution.name, extra] = distribution
        for needed in map(packaging.Requirement, distribution.requires or []):
            if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                other = ours if needed.name == "rwkvctl" else importlib.metadata.distribution(needed.name)
                todo += [(other, more) for more in ("", *needed.extras)]
    return [distribution for distribution in found.values() if distribution is not ours]


@pytest.fixture(scope="module")
def whole(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return Environment(tmp_path_factory.mktemp("whole") / "venv", built.wheel, {"platform"})


@pytest.fixture(scope="module")
def model_only(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return Environment(tmp_path_factory.mktemp("model") / "venv", built.wheel, set())


def test_the_installed_command_line_works_away_from_the_source_tree(whole: Environment):
    assert "clinicdb" in whole.run("rwkvctl", "recipe", "list")
    whole.run("rwkvctl", "data", "synth", "clinicdb", "--out", "raw")
    whole.run("rwkvctl", "data", "prepare", "clinicdb", "--source", "raw", "--out", "shards", "--allow-partial")
    assert (whole.work / "shards" / "manifest.json").is_file()


MODEL = """
import json, torch, rwkv_unet
from biwkv import cpu
model = rwkv_unet.create_model("rwkv_unet_t", num_classes=2).eval()
with torch.inference_mode():
    shape = list(model(torch.rand(1, 3, 32, 32)).shape)
print(json.dumps([shape, cpu.why_not(torch.zeros(1, 1, 1)), rwkv_unet.__file__]))
"""


def test_the_model_alone_needs_torch_and_timm(model_only: Environment):
    shape, why_not_compiled, file = json.loads(model_only.run("python", "-c", MODEL))
    assert (shape, why_not_compiled) == ([1, 2, 32, 32], "" if COMPILER else why_not_compiled)
    assert Path(file).is_relative_to(model_only.bin.parent)


def test_without_the_platform_the_command_says_what_to_install(model_only: Environment):
    done = subprocess.run(
        [model_only.bin / "rwkvctl", "--help"], env=model_only.variables(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.endswith(" is not installed; run: pip install 'rwkvctl[platform]'\n")
    assert done.stderr.count("\n") == 1
