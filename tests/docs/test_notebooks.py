"""The notebooks run from the first to the last cell, and are stored small, with what they print."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from .test_commands import check_names, parsed

DOCS = Path(__file__).parents[2] / "docs"
NOTEBOOKS = sorted(DOCS.glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_is_stored(path: Path):
    assert path.stat().st_size < 300_000
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert any("image/png" in output.get("data", {}) for cell in code for output in cell.outputs)
    assert not any(output.output_type == "error" for cell in code for output in cell.outputs)
    assert not re.search(r"/tmp/|/work/|site-packages", path.read_text()), "of the machine that it ran on"
    commands = re.findall(r"^rwkvctl (?:.*\\\n)*.*$", "\n".join(cell.source for cell in code), re.MULTILINE)
    assert len(commands) >= 4
    for command in commands:
        check_names(command, parsed(command.replace("\\\n", " ")) or {})
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            assert all((DOCS / target).exists() for target in re.findall(r"\]\(([\w.]+)\)", cell.source))


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path: Path):
    command = [sys.executable, str(DOCS / "notebooks.py"), path.stem]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.fullmatch(rf"{path.name}: \d+ cells ran\n", done.stdout)
