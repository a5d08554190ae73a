"""The site is built without a warning, holds what the code tells, and needs nothing from elsewhere to be read."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import typer

from rwkvctl.cli.app import app
from rwkvctl.config.specs.jobs import JOBS

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def pages() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pages", ROOT / "docs" / "pages.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_command_and_option_has_its_line(pages: ModuleType):
    page = pages.commands()
    headings = set(re.findall(r"^##+ rwkvctl (.*)$", page, re.MULTILINE))
    command = typer.main.get_command(app)
    for name, group in command.commands.items():  # type: ignore[attr-defined]
        if not group.hidden:
            assert {name, *(f"{name} {inner}" for inner in getattr(group, "commands", {}))} <= headings
    section = page[page.index("## rwkvctl predict\n") : page.index("## rwkvctl serve\n")]
    assert "| <code>--backend &lt;str&gt;</code> | torch, or onnxruntime for exported files" in section
    assert "    rwkvctl predict [OPTIONS]" in section


def test_every_field_of_every_job_has_its_line(pages: ModuleType):
    page = pages.specs()
    for job, spec in JOBS.items():
        section = page.partition(f"## {job}\n")[2].partition("\n## ")[0]
        for name, field in spec.model_fields.items():
            assert name == "job" or f"| `{field.alias or name}` |" in section, f"{job}.{name}"
    anchors = {heading.lower() for heading in re.findall(r"^## (.*)$", page, re.MULTILINE)}
    assert set(re.findall(r"\]\(#([^)]*)\)", page)) <= anchors


def test_every_page_has_its_place(pages: ModuleType):
    placed = re.findall(r"^ +- [^:]+: ([\w-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    made = {
        *pages.OF_THE_ROOT.values(),
        *(f"{name}.md" for name in pages.NOTEBOOKS),
        "commands.md",
        "specs.md",
        "python.md",
    }
    assert sorted(placed) == sorted({*(page.name for page in (ROOT / "docs").glob("*.md")), *made})
    assert sorted(path.stem for path in (ROOT / "docs").glob("*.ipynb")) == sorted(pages.NOTEBOOKS)


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path: Path):
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    for page in (tmp_path / "site").glob("*.html"):
        text = page.read_text()
        loaded = re.findall(r'<(?:script|img|iframe)[^>]*src="(http[^"]*)|<link[^>]*href="(http[^"]*)', text)
        assert loaded == [], page.name
        assert all(kind in text for kind in ("Getting started", "How-to", "Reference", "Explanation")), page.name
    python = (tmp_path / "site" / "python.html").read_text()
    assert 'id="rwkv_unet.create_model"' in python
    assert 'id="rwkvctl.models.ensemble.Segmenter.segment"' in python
    assert "figures/quickstart-output" in (tmp_path / "site" / "quickstart.html").read_text()
