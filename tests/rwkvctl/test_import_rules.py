"""Imports point one way, and the command line stays light."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {  # from the top to the bottom: a package may import those below it
    "rwkv_jobs": ROOT / "jobs" / "rwkv_jobs",
    "rwkvctl": ROOT / "platform" / "rwkvctl",
    "rwkv_unet": ROOT / "rwkv_unet",
    "biwkv": ROOT / "kernels" / "biwkv",
}
MAY_IMPORT = {
    "ray": ["rwkvctl/launch/", "rwkvctl/serving/server.py", "rwkv_jobs/launch.py", "rwkv_jobs/trial_runner.py"],
    "mlflow": ["rwkvctl/runs/", "rwkvctl/registry/"],
    "optuna": ["rwkvctl/sweeps/"],
}
OPTIONAL = {  # inside functions only
    "rwkv_unet/baselines/libraries.py": {"segmentation_models_pytorch"},
    "rwkv_unet/baselines/monai_networks.py": {"monai"},
    "rwkv_unet/hub.py": {"safetensors", "huggingface_hub"},
}
ROOMS = [
    "base", "config", "pictures", "data", "training", "models", "runs", "registry", "sweeps", "launch", "serving",
    "reports", "cli",
]  # fmt: skip
"""A room imports itself and those before it."""
DATA_ROOMS = ["images", "store", "feed", "convert", "guess"]
HEAVY = ["torch", "ray", "mlflow", "timm", "numpy", "cv2", "monai", "webdataset", "optuna", "pandas"]
COMMANDS = [
    "",
    "data", "data prepare", "data verify", "data show", "data list", "data synth", "data verify-synapse",
    "data doctor", "data split", "data export", "data export nnunet",
    "pretrain", "finetune", "tune", "evaluate", "predict", "serve",
    "model", "model list", "model show", "model promote", "model rules",
    "model history", "model rollback", "model lineage", "model card", "model export", "model compare", "model erf",
    "model plot", "model push", "model pull", "model calibrate", "model grid",
    "checkpoint", "checkpoint list", "checkpoint verify", "checkpoint gc",
    "study", "study list", "study show", "study run", "study report",
    "runs", "run", "run list", "run show", "run logs", "run wait", "run stop", "run resume", "run rerun", "run rm",
    "run replay", "run compare", "run paired", "run export", "sync", "ui",
    "recipe", "recipe list", "recipe show", "recipe schema",
    "config", "config show", "config set", "config unset",
    "demo", "doctor", "chaos",
]  # fmt: skip


def modules() -> Iterator[tuple[str, Path]]:
    for package, folder in PACKAGES.items():
        for path in sorted(folder.rglob("*.py")):
            yield package, path


def imported(path: Path, *, lazily: bool = True) -> set[str]:
    """Top-level names of everything that a file imports, wherever in it or (not lazily) when it is imported itself."""
    names: set[str] = set()
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree) if lazily else tree.body:
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names.add((node.module or "").split(".")[0])
    return names


def named(path: Path) -> str:
    """`rwkvctl/cli/app.py`."""
    package = next(folder for folder in PACKAGES.values() if path.is_relative_to(folder))
    return path.relative_to(package.parent).as_posix()


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_point_one_way(package: str):
    order = list(PACKAGES)
    above = set(order[: order.index(package)])
    assert [named(path) for name, path in modules() if name == package and imported(path) & above] == []


def module_graph() -> dict[str, set[str]]:
    """Every module of rwkvctl, and the modules of it that it imports, lazily too. Packages are docstrings only."""
    root = PACKAGES["rwkvctl"]
    paths = {".".join(("rwkvctl", *path.relative_to(root).with_suffix("").parts)): path for path in root.rglob("*.py")}
    paths = {name.removesuffix(".__init__"): path for name, path in paths.items()}
    graph: dict[str, set[str]] = {}
    for name, path in paths.items():
        wanted: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                wanted |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                wanted |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module or ""}
        graph[name] = {found for found in wanted if found in paths and found != name}
    return graph


def test_every_file_stands_in_a_room():
    root = PACKAGES["rwkvctl"]
    assert [path.name for path in root.glob("*.py")] == ["__init__.py"]
    assert {path.parent.name for path in root.glob("*/__init__.py")} == set(ROOMS)
    assert {path.parent.name for path in (root / "data").glob("*/__init__.py")} == set(DATA_ROOMS)


@pytest.mark.parametrize(("order", "level"), [(ROOMS, 1), (DATA_ROOMS, 2)])
def test_a_room_imports_only_rooms_before_it(order: list[str], level: int):
    def place(module: str) -> int | None:
        parts = module.split(".")
        inside = level == 1 or parts[1] == "data"
        return order.index(parts[level]) if inside and len(parts) > level else None

    wrong = [
        f"{name} -> {found}"
        for name, all_found in module_graph().items()
        for found in sorted(all_found)
        if (here := place(name)) is not None and (there := place(found)) is not None and there > here
    ]
    assert wrong == []


def test_no_imports_go_round_in_a_circle():
    graph, done, circles = module_graph(), set(), []

    def visit(module: str, path: list[str]) -> None:
        if module in path:
            circles.append(" -> ".join([*path[path.index(module) :], module]))
        elif module not in done:
            for found in sorted(graph[module]):
                visit(found, [*path, module])
            done.add(module)

    for module in graph:
        visit(module, [])
    assert circles == []


@pytest.mark.parametrize("library", MAY_IMPORT)
def test_training_works_without_ray_and_mlflow(library: str):
    users = [named(path) for _, path in modules() if library in imported(path)]
    assert [user for user in users if not user.startswith(tuple(MAY_IMPORT[library]))] == []
    assert users


@pytest.mark.parametrize("package", ["rwkv_unet", "biwkv"])
def test_the_model_needs_torch_and_timm_only(package: str):
    always = {"torch", "timm", "triton", "numpy", *PACKAGES, *sys.stdlib_module_names}
    for path in (path for name, path in modules() if name == package):
        optional = OPTIONAL.get(named(path), set())
        assert imported(path) <= always | optional, path
        assert not imported(path, lazily=False) & optional, path


def test_the_command_line_never_imports_the_jobs():
    for _, path in modules():
        if named(path).startswith("rwkvctl/"):
            assert "rwkv_jobs" not in imported(path), path


def test_no_source_root_is_a_package():
    assert [root for root in ("platform", "kernels", "jobs") if (ROOT / root / "__init__.py").exists()] == []


def test_help_imports_nothing_heavy():
    """Of every command in one process: `--help` exits by SystemExit, which leaves the modules to be looked at."""
    code = f"""
import contextlib, io, sys
from rwkvctl.cli import app
for words in {[command.split() for command in COMMANDS]!r}:
    sys.argv = ["rwkvctl", *words, "--help"]
    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out):
            app.main()
    except SystemExit as end:
        assert not end.code, words
    assert "Usage: " in out.getvalue(), words
print([name for name in {[*HEAVY, "rwkv_jobs"]!r} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_a_job_is_checked_and_started_without_torch(tmp_path: Path):
    """Its own process imports it, which takes seconds, and builds the networks of a sweep."""
    from rwkvctl.data.convert import synth
    from rwkvctl.data.convert.prepare import prepare

    synth.write("clinicdb", tmp_path / "raw", n=16, size=40)
    prepare("clinicdb", [tmp_path / "raw"], tmp_path / "shards", allow_partial=True)
    code = """
import sys
from rwkvctl.cli import app, execute
execute.submit = lambda *args, **options: 3
for words in ("finetune clinicdb --encoder nowhere", "tune --space ccm_hidden"):
    sys.argv = ["rwkvctl", *words.split(), "--data", "shards"]
    try:
        app.app()
    except SystemExit as end:
        assert end.code == 3, words
print([name for name in ("torch", "timm", "ray", "mlflow", "optuna") if name in sys.modules])
"""
    environment = os.environ | {"RWKVCTL_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_every_command_is_in_the_list():
    import typer

    from rwkvctl.cli.app import app

    def names(command: object, name: str = "") -> set[str]:
        inner = getattr(command, "commands", {})
        return {name}.union(*(names(own, f"{name} {word}".strip()) for word, own in inner.items()))

    assert names(typer.main.get_command(app)) == set(COMMANDS)
