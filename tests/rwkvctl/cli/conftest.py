"""The command line in the process of the tests."""

from __future__ import annotations

import sys

import pytest

from rwkvctl.cli import app


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
