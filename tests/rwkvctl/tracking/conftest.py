"""A real MLflow on SQLite for each test, from one migrated database (migrating takes seconds)."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import pytest

from rwkvctl.tracking import sync


@pytest.fixture(scope="session")
def migrated_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    database = tmp_path_factory.mktemp("mlflow") / "template.db"
    with warnings.catch_warnings():
        # Once per process, both from MLflow about itself: SQLAlchemy 2.1 on its mappers, and its own type hints.
        warnings.filterwarnings("ignore", ".*noload.*")
        warnings.filterwarnings("ignore", ".*Any type hint is inferred.*")
        import mlflow.pyfunc  # noqa: F401

        sync.connect(f"sqlite:///{database}")
    return database


@pytest.fixture
def tracking_uri(migrated_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("RWKVCTL_HOME", str(home))
    shutil.copy(migrated_database, home / "mlflow.db")
    return f"sqlite:///{home / 'mlflow.db'}"
