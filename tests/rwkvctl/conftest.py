"""The command line, a home for each test, small prepared data sets for the session, and a real MLflow on SQLite."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from rwkvctl.cli import app
from rwkvctl.data.convert import synth
from rwkvctl.data.convert.prepare import prepare
from rwkvctl.data.convert.synth import phantom
from rwkvctl.data.store.manifest import Manifest

VARIABLES = ("RAY_ADDRESS", "MLFLOW_TRACKING_URI", "RWKVCTL_DATA_ROOT", "RWKVCTL_STORAGE", "RWKVCTL_MIRRORS")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of the test's own, and none of the developer's settings."""
    monkeypatch.setenv("RWKVCTL_HOME", str(tmp_path / "home"))
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    return tmp_path / "home"


@pytest.fixture(scope="session")
def polyps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A raw images/ + masks/ tree. Tests must not change it."""
    return phantom.write_polyps(tmp_path_factory.mktemp("raw") / "polyps", n=20, size=48)


@pytest.fixture(scope="session")
def hearts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return phantom.write_volumes(tmp_path_factory.mktemp("raw") / "hearts", n_patients=4, size=32, depth=3)


@pytest.fixture(scope="session")
def textures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return phantom.write_textures(tmp_path_factory.mktemp("raw") / "textures", classes=3, per_class=10, size=32)


@pytest.fixture(scope="session")
def binary(polyps: Path, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return prepare("folder", [polyps], tmp_path_factory.mktemp("shards") / "binary", seeds=[41])


@pytest.fixture(scope="session")
def cardiac(hearts: Path, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return prepare("acdc", [hearts], tmp_path_factory.mktemp("shards") / "cardiac")


@pytest.fixture(scope="session")
def classed(textures: Path, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return prepare("imagefolder", [textures], tmp_path_factory.mktemp("shards") / "classed")


@pytest.fixture(scope="session")
def cervix(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """With unlabeled samples."""
    raw = tmp_path_factory.mktemp("raw") / "cervix"
    synth.write("fugc", raw)
    return prepare("fugc", [raw], tmp_path_factory.mktemp("shards") / "cervix", allow_partial=True)


@pytest.fixture
def tracking_uri(migrated_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("RWKVCTL_HOME", str(home))
    shutil.copy(migrated_database, home / "mlflow.db")
    return f"sqlite:///{home / 'mlflow.db'}"


class Result:
    def __init__(self, code: int, out: str, err: str):
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def rwkvctl(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    """Run a command line in this process: its exit code and what it printed."""

    def run(line: str | list[str]) -> Result:
        monkeypatch.setattr(sys, "argv", ["rwkvctl", *(line.split() if isinstance(line, str) else line)])
        capfd.readouterr()
        try:
            app.main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        captured = capfd.readouterr()
        return Result(code, captured.out, captured.err)

    return run
