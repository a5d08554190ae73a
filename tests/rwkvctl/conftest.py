from __future__ import annotations

from pathlib import Path

import pytest

VARIABLES = ("RAY_ADDRESS", "MLFLOW_TRACKING_URI", "RWKVCTL_DATA_ROOT", "RWKVCTL_STORAGE")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of the test's own, and none of the developer's settings."""
    monkeypatch.setenv("RWKVCTL_HOME", str(tmp_path / "home"))
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    return tmp_path / "home"
