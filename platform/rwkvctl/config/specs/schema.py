"""JSON schemas of the YAML files that a user writes, for editors: names of fields, types, ranges and what each is for.

What several fields must fulfil together (a batch that the workers divide, a warm-up that ends) is not in a schema: it
is checked when a spec is built.
"""

from __future__ import annotations

from typing import Any

from pydantic import AliasChoices
from pydantic.json_schema import GenerateJsonSchema, models_json_schema

from rwkvctl.base.errors import UserError
from rwkvctl.base.suggestions import did_you_mean
from rwkvctl.config.specs.base import Spec
from rwkvctl.config.specs.jobs import JOBS, SpaceSpec
from rwkvctl.config.specs.study import StudySpec

FILES: dict[str, type[Spec]] = {**JOBS, "space": SpaceSpec, "study": StudySpec}
"""Kinds of files: a recipe of each job, sweep spaces, studies."""
DIALECT = "https://json-schema.org/draft/2020-12/schema"
PART_OF = "PartOf"
BASE = {
    "type": "string",
    "description": "Another recipe, by name or path, whose fields are taken first.",
}


class _Generator(GenerateJsonSchema):
    """pydantic's, which knows one spelling of a field that has several."""

    def model_schema(self, schema: Any) -> dict[str, Any]:
        found = super().model_schema(schema)
        for field in schema["cls"].model_fields.values():
            if isinstance(field.validation_alias, AliasChoices):
                first, *others = map(str, field.validation_alias.choices)
                found["properties"] |= dict.fromkeys(others, found["properties"][first])
        return found


def schema(kind: str | None = None) -> dict[str, Any]:
    """The schema of one kind of file, or of any of them. UserError for an unknown kind."""
    if kind is not None and kind not in FILES:
        raise UserError(f"kind of file {kind!r} is unknown: {did_you_mean(kind, FILES)}")
    kinds = list(FILES) if kind is None else [kind]
    definitions = models_json_schema([(FILES[name], "validation") for name in kinds], schema_generator=_Generator)[1]
    whole = definitions["$defs"]
    parts = {PART_OF + name: _part(node) for name, node in whole.items()}
    files = [_recipe(whole, parts, name) if name in JOBS else _reference(FILES[name].__name__) for name in kinds]
    return {"$schema": DIALECT, **(files[0] if kind else {"anyOf": files}), "$defs": whole | parts}


def _reference(name: str) -> dict[str, Any]:
    return {"$ref": f"#/$defs/{name}"}


def _recipe(whole: dict[str, Any], parts: dict[str, Any], job: str) -> dict[str, Any]:
    """A recipe says its job and is complete, or has a `base` and may leave out anything."""
    name = JOBS[job].__name__
    parts[PART_OF + name]["properties"]["base"] = BASE
    complete = {**whole[name], "required": sorted({"job", *whole[name].get("required", [])})}
    whole[f"{name}Recipe"] = complete
    return {
        "if": {"required": ["base"]},
        "then": _reference(PART_OF + name),
        "else": _reference(f"{name}Recipe"),
    }


def _part(node: Any) -> Any:
    """A schema with nothing required, here and below."""
    if isinstance(node, list):
        return [_part(item) for item in node]
    if not isinstance(node, dict):
        return node
    node = {key: _part(value) for key, value in node.items() if not (key == "required" and isinstance(value, list))}
    reference = node.get("$ref")
    return node | {"$ref": reference.replace("#/$defs/", f"#/$defs/{PART_OF}")} if isinstance(reference, str) else node
