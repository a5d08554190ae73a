"""What a test run says at its end about the tests that it could not run."""

from __future__ import annotations

from typing import Any

import pytest

Reports = list[Any]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """`242 GPU tests left out: no CUDA device`: skipped tests are easily taken for passed ones."""
    skipped: Reports = terminalreporter.stats.get("skipped", [])
    without = [report for report in skipped if "gpu" in getattr(report, "keywords", ())]  # a module's report has none
    if without:
        reasons = {report.longrepr[2].removeprefix("Skipped: ") for report in without}
        terminalreporter.write_line(f"{len(without)} GPU tests left out: {'; '.join(sorted(reasons))}", yellow=True)
