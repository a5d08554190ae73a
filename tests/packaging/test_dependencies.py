"""pyproject.toml asks for what the packages import, no more and no less; only constraints.txt pins versions."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

import pytest

requirements = pytest.importorskip("packaging.requirements")
utils = pytest.importorskip("packaging.utils")

ROOT = Path(__file__).parents[2]
MODEL = [ROOT / "rwkv_unet", ROOT / "kernels" / "biwkv"]
PLATFORM = [ROOT / "platform" / "rwkvctl", ROOT / "jobs" / "rwkv_jobs"]
OURS = {"biwkv", "rwkv_unet", "rwkvctl", "rwkv_jobs"}
NOT_IMPORTED_BY_US = {
    "cmaes": "Optuna imports it for its CMA-ES sampler",
    "einops": "MONAI's transformers import it when they are made",
    "onnx": "torch.onnx imports it",
    "s3fs": "fsspec imports it for s3://",
    "gcsfs": "fsspec imports it for gs://",
    "python-multipart": "Starlette imports it for uploads",
    "psycopg": "SQLAlchemy imports it for postgresql://, under Optuna and MLflow",
}
COMES_WITH_TORCH = {"triton"}  # on the machines that it runs on

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


def names(lines: list[str]) -> set[str]:
    return {utils.canonicalize_name(requirements.Requirement(line).name) for line in lines} - {"rwkvctl"}


def imported(folders: list[Path]) -> set[str]:
    """The distributions whose modules are imported anywhere in the folders, also inside functions."""
    modules: set[str] = set()
    for path in (path for folder in folders for path in folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                modules.add((node.module or "").partition(".")[0])
    by_module = importlib.metadata.packages_distributions()
    modules -= OURS | COMES_WITH_TORCH | set(sys.stdlib_module_names)
    found = {module: {utils.canonicalize_name(name) for name in by_module[module]} for module in modules}
    return {min(names, key=len) for names in found.values()}  # mlflow, not mlflow-skinny


def test_the_model_imports_what_it_declares():
    assert imported(MODEL) - names(EXTRAS["baselines"]) == names(PROJECT["dependencies"])


def test_the_platform_imports_what_it_declares():
    declared = names([*PROJECT["dependencies"], *EXTRAS["platform"]])
    found = imported([*MODEL, *PLATFORM])
    assert declared - found - set(NOT_IMPORTED_BY_US) == set(), "declared and imported by nothing"
    optional = names(
        [
            *EXTRAS["baselines"],
            *EXTRAS["onnx"],
            *EXTRAS["scans"],
            *EXTRAS["serve"],
            *EXTRAS["s3"],
            *EXTRAS["gs"],
            *EXTRAS["postgres"],
            *EXTRAS["dashboard"],
            *EXTRAS["wandb"],
        ]
    )
    assert found - declared - optional == set(), "imported and not declared"
    assert optional - found <= set(NOT_IMPORTED_BY_US), "declared and imported by nothing"


def test_ranges_have_a_lower_bound_and_none_is_one_version():
    every = [*PROJECT["dependencies"], *(line for extra, lines in EXTRAS.items() if extra != "dev" for line in lines)]
    for line in every:
        operators = {clause.operator for clause in requirements.Requirement(line).specifier}
        assert ">=" in operators, line
        assert operators <= {">=", "<"}, line


def test_constraints_pin_every_dependency_to_a_version_in_its_range():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.+]+", line)] == []
    pinned = {utils.canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}
    for line in [*PROJECT["dependencies"], *(line for lines in EXTRAS.values() for line in lines)]:
        needed = requirements.Requirement(line)
        if needed.name not in ("rwkvctl", "gcsfs"):  # gcsfs: for Google's buckets, which no test reads
            version = pinned[utils.canonicalize_name(needed.name)]
            assert needed.specifier.contains(version), f"{line}: constraints.txt has {version}"
