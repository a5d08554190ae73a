"""The pages of the site that are not files of docs/: what the code tells, the notebook, and those of the root folder.

A hook of MkDocs, see mkdocs.yml. On GitHub the same pages of docs/ are read as they are.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from nbconvert import MarkdownExporter
from pydantic import BaseModel

from rwkvctl.cli.app import app
from rwkvctl.config.specs.jobs import JOBS
from rwkvctl.config.specs.rules import PromotionRules

DOCS = Path(__file__).parent
ROOT = DOCS.parent
OF_THE_ROOT = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
}
NOTEBOOKS = ("quickstart",)
PUBLIC = {
    "The model": ["rwkv_unet.create_model", "rwkv_unet.ModelConfig", "rwkv_unet.load_official_state_dict",
                  "rwkv_unet.fuse_for_inference", "rwkv_unet.list_models"],
    "The operator": ["biwkv.bi_wkv", "biwkv.bi_wkv_nd"],
    "Data": ["rwkvctl.data.store.manifest.Manifest", "rwkvctl.data.store.reader",
             "rwkvctl.data.convert.prepare.prepare"],
    "Model folders and masks": ["rwkvctl.models.bundle", "rwkvctl.models.ensemble.Segmenter",
                                "rwkvctl.models.segmenting", "rwkvctl.models.predict",
                                "rwkvctl.models.inference"],
    "Exported models": ["rwkvctl.models.export_whole.export", "rwkvctl.models.export.export",
                        "rwkvctl.models.onnx_model", "rwkvctl.models.onnx_segmenter.OnnxSegmenter"],
    "Metrics": ["rwkvctl.training.metrics", "rwkvctl.training.surfaces", "rwkvctl.training.lesions"],
}  # fmt: skip
"""Names that the page on Python shows, a module with all that it has."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """MkDocs asks for all files of the site."""
    made = {target: (ROOT / source).read_text() for source, target in OF_THE_ROOT.items()}
    made |= {"commands.md": commands(), "specs.md": specs(), "python.md": python()}
    for name, content in made.items():
        files.append(File.generated(config, name, content=content))
    for name in NOTEBOOKS:
        text, pictures = notebook(DOCS / f"{name}.ipynb", name)
        files.append(File.generated(config, f"{name}.md", content=text))
        for path, data in pictures.items():
            files.append(File.generated(config, path, content=data))
    return files


def on_page_markdown(text: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """MkDocs hands out the text of each page."""
    of_root = page.file.src_uri in OF_THE_ROOT.values()
    return re.sub(r"\[([^\]]*)\]\(([^)\s:]+?)(#[^)]*)?\)", lambda link: linked(link, of_root=of_root), text)


def linked(link: re.Match[str], *, of_root: bool) -> str:
    """A link between pages as the site has them; to files that are no pages, their path."""
    text, target, anchor = link[1], link[2], link[3] or ""
    path = ((ROOT if of_root else DOCS) / target).resolve()
    if not path.exists():
        return link[0]
    name = path.relative_to(ROOT).as_posix()
    page = OF_THE_ROOT.get(name) or (path.relative_to(DOCS).as_posix() if path.is_relative_to(DOCS) else None)
    if page is not None and not page.endswith(".py"):
        return f"[{text}]({page.replace('.ipynb', '.md')}{anchor})"
    return f"{text} (`{name}`)" if name not in text else f"`{name}`"


# Commands -----------------------------------------------------------------------------------------------------------


def commands() -> str:
    """Every command with its arguments and options, as `--help` has them."""
    root = typer.main.get_command(app)
    parts = ["# Commands", "Every one takes `--help`. What they return is under [exit codes](reference.md#exit-codes)."]
    for name, command, context in walk(root, "rwkvctl", None):
        if command is not root:
            parts += [f"{'##' if name.count(' ') == 1 else '###'} {name}", (command.help or "").strip()]
        if not hasattr(command, "commands"):
            usage = " ".join(command.collect_usage_pieces(context))
            rows = [record for one in command.get_params(context) if (record := one.get_help_record(context))]
            parts += [f"    {name} {usage}", table(["", "meaning"], [[code(what), plain(said)] for what, said in rows])]
    return "\n\n".join(part for part in parts if part)


def plain(text: str) -> str:
    """Text that is no Markdown: brackets in it are no links, angles no tags."""
    return re.sub(r"([\[\]<>*_])", r"\\\1", text)


def code(text: str) -> str:
    """Code that may hold a bar, which in backticks would end a table's cell."""
    return f"<code>{html.escape(text).replace('|', '&#124;')}</code>"


def walk(command: Any, name: str, parent: Any) -> Iterator[tuple[str, Any, Any]]:
    """A command and those below it that are not hidden."""
    context = command.context_class(command, info_name=name, parent=parent)
    yield name, command, context
    for inner_name, inner in getattr(command, "commands", {}).items():
        if not inner.hidden:
            yield from walk(inner, f"{name} {inner_name}", None)


# Specs --------------------------------------------------------------------------------------------------------------


def specs() -> str:
    """Every field of every kind of job, from the JSON schema that `recipe schema` prints."""
    parts = [
        "# Specs",
        "What a recipe holds and `--set` overrides, one kind of job after the other; shared parts stand last. "
        "`rwkvctl recipe schema finetune` prints the same for an editor.",
    ]
    inner: dict[str, Any] = {}
    every: dict[str, type[BaseModel]] = {**JOBS, "rules of a promotion": PromotionRules}
    for job, spec in every.items():
        schema = spec.model_json_schema(by_alias=True)
        inner |= schema.pop("$defs", {})
        parts += section(job, schema)
    for name in sorted(set(inner) - {spec.__name__ for spec in JOBS.values()}):
        parts += section(name, inner[name])
    for name, spec in JOBS.items():
        parts = [part.replace(f"(#{spec.__name__.lower()})", f"(#{name})") for part in parts]
    return "\n\n".join(part for part in parts if part)


def section(name: str, schema: dict[str, Any]) -> list[str]:
    rows = [
        [f"`{field}`", kind(about), default(about), about.get("description", "")]
        for field, about in schema.get("properties", {}).items()
        if field != "job"
    ]
    said = schema.get("description", "").strip()
    return [f"## {name}", said, table(["field", "type", "default", "meaning"], rows) if rows else kind(schema)]


def kind(about: dict[str, Any]) -> str:
    """The type of a JSON schema in words; parts are links."""
    if "$ref" in about:
        name = about["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in about or "oneOf" in about:
        return " or ".join(dict.fromkeys(kind(one) for one in about.get("anyOf") or about["oneOf"]))
    if "enum" in about:
        return ", ".join(f"`{value}`" for value in about["enum"])
    if "const" in about:
        return f"`{about['const']}`"
    if about.get("type") == "array":
        items = about.get("items") or (about.get("prefixItems") or [{}])[0]
        return f"list of {kind(items)}"
    if about.get("type") == "object" and isinstance(about.get("additionalProperties"), dict):
        return f"names to {kind(about['additionalProperties'])}"
    bounds = [
        f"{sign} {about[key]}"
        for key, sign in (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))
        if key in about
    ]
    return " ".join([str(about.get("type", "anything")), *bounds])


def default(about: dict[str, Any]) -> str:
    """As JSON; of a part, whose fields have their own, nothing."""
    return f"`{json.dumps(about['default'])}`" if "default" in about and "$ref" not in about else ""


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [" | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in row) for row in [head, *rows]]
    return (
        "\n".join([f"| {lines[0]} |", "|" + "---|" * len(head), *(f"| {line} |" for line in lines[1:])]) if rows else ""
    )


# Python and notebooks -----------------------------------------------------------------------------------------------


def python() -> str:
    """What mkdocstrings fills in from the docstrings."""
    parts = ["# Python", "What a program of one's own uses, by subject. Shapes, units and errors stand with each."]
    for title, names in PUBLIC.items():
        parts += [f"## {title}", *(f"::: {name}" for name in names)]
    return "\n\n".join(parts)


def notebook(path: Path, name: str) -> tuple[str, dict[str, bytes]]:
    """A notebook as a page, with the outputs that it was stored with; and its pictures by their path."""
    text, resources = MarkdownExporter().from_notebook_node(nbformat.read(path, as_version=4))
    pictures = {f"figures/{name}-{file}": data for file, data in resources["outputs"].items()}
    for file in resources["outputs"]:
        text = text.replace(f"]({file})", f"](figures/{name}-{file})")
    return text, pictures
