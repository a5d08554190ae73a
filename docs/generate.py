"""Writes the tables of docs/reference.md that tell what the code says: `make docs`. A test compares them."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

from rwkvctl.base import exit_codes
from rwkvctl.base.paths import home
from rwkvctl.config.settings import ENVIRONMENT, Settings
from rwkvctl.config.specs.augment import PRESETS, SegmentationAugment

REFERENCE = Path(__file__).with_name("reference.md")


def settings() -> list[list[str]]:
    """Every setting: key, environment variable, default and meaning."""
    rows = [["(home)", "`RWKVCTL_HOME`", "`~/.rwkvctl`", "Settings, runs, data and cache, where nothing else is set."]]
    defaults = Settings()
    for key, field in Settings.model_fields.items():
        value = getattr(defaults, key)
        shown = "null" if value is None else str(value).replace(str(home()), "<home>")
        variable = f"`{ENVIRONMENT[key]}`" if key in ENVIRONMENT else ""
        rows.append([f"`{key}`", variable, f"`{shown}`", sentence(field.description or "")])
    return [["key", "environment", "default", "meaning"], *rows]


def codes() -> list[list[str]]:
    """Every exit code, with the docstring below it."""
    body = ast.parse(inspect.getsource(exit_codes)).body
    rows = []
    for node, below in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            said = below.value.value if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) else ""
            rows.append([str(node.value.value), sentence(str(said))])
    return [["code", "meaning"], *rows]


def augmentation() -> list[list[str]]:
    """Every field of segmentation's augmentation, with its value in each preset."""
    presets = [SegmentationAugment(preset=preset) for preset in PRESETS]
    rows = []
    for name, field in SegmentationAugment.model_fields.items():
        if name != "preset":
            values = [getattr(preset, name) for preset in presets]
            shown = [", ".join(f"{end:g}" for end in (v if isinstance(v, tuple) else (v,))) for v in values]
            rows.append([f"`{name}`", *shown, sentence(field.description or "")])
    return [["field", *(f"`{preset}`" for preset in PRESETS), "meaning"], *rows]


def sentence(text: str) -> str:
    """A docstring in one line of a table."""
    return " ".join(text.split()).replace("|", "\\|")


def table(rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def generated(text: str) -> str:
    """The page with its tables made anew; each stands between two marks."""
    for name, rows in {"settings": settings(), "augmentation": augmentation(), "exit codes": codes()}.items():
        begin, end = f"<!-- {name}: made by `make docs` -->", f"<!-- end of {name} -->"
        pattern = f"{re.escape(begin)}.*?{re.escape(end)}"
        assert len(re.findall(pattern, text, re.DOTALL)) == 1, f"{REFERENCE}: {begin} ... {end} is missing"
        whole = f"{begin}\n\n{table(rows)}\n\n{end}"
        text = re.sub(pattern, lambda _, whole=whole: whole, text, flags=re.DOTALL)
    return text


if __name__ == "__main__":
    REFERENCE.write_text(generated(REFERENCE.read_text()))
