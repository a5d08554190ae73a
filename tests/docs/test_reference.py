"""The reference's tables are those that the code gives."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


def test_the_tables_of_the_reference_are_up_to_date(monkeypatch: pytest.MonkeyPatch):
    for variable in ("RWKVCTL_HOME", "RWKVCTL_CACHE"):
        monkeypatch.delenv(variable, raising=False)
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    page = (DOCS / "reference.md").read_text()
    assert generate.generated(page) == page, "run: make docs"
