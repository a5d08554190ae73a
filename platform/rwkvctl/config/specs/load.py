"""From a recipe's name and a list of overrides to a checked spec."""

from __future__ import annotations

import functools
import importlib.util
import re
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from rwkvctl.base.errors import UserError
from rwkvctl.base.suggestions import did_you_mean
from rwkvctl.config.specs.base import Spec, problems
from rwkvctl.config.specs.jobs import JOBS, JobSpec
from rwkvctl.config.specs.space import SpaceSpec, space_problems

AnySpec = TypeVar("AnySpec", bound=Spec)


@functools.cache
def job_folder() -> Path:
    """Where the jobs package lies; found without importing it."""
    found = importlib.util.find_spec("rwkv_jobs")
    assert found is not None, "rwkvctl is installed without rwkv_jobs"
    return Path(next(iter(found.submodule_search_locations or [])))


def recipe_names(job: str | None = None) -> list[str]:
    """The recipes that are shipped, all or those of one job kind."""
    files = sorted((job_folder() / "recipes").glob("*.yaml"))
    return [file.stem for file in files if job is None or read_recipe(file.stem)["job"] == job]


def space_names() -> list[str]:
    """The sweep spaces that are shipped."""
    return sorted(file.stem for file in (job_folder() / "spaces").glob("*.yaml"))


def shipped_or_path(folder: str, name: str, known: list[str]) -> Path:
    """A file of ours by its name, or the user's own by its path."""
    what = {"recipes": "recipe", "spaces": "space", "studies": "study"}[folder]
    if name.endswith((".yaml", ".yml")):
        if not Path(name).is_file():
            raise UserError(f"{what} {name}: no such file")
        return Path(name)
    if name not in known:
        raise UserError(f"{what} {name!r} is unknown: {did_you_mean(name, known)} (or give the path of a YAML file)")
    return job_folder() / folder / f"{name}.yaml"


class PlainNumbers(yaml.SafeLoader):
    """YAML 1.1 takes `2:4` for a number of base 60, 124; here it is text."""


PlainNumbers.yaml_implicit_resolvers = {
    first: [(tag, regex) for tag, regex in rules if not tag.endswith((":int", ":float"))]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
FLOAT = (
    r"[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+][0-9]+)?|\.[0-9][0-9_]*(?:[eE][-+][0-9]+)?"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)
for tag, pattern, first in (
    ("int", r"[-+]?0b[0-1_]+|[-+]?0x[0-9a-fA-F_]+|[-+]?0[0-7_]*|[-+]?[1-9][0-9_]*", "-+0123456789"),
    ("float", FLOAT, "-+0123456789."),
):
    PlainNumbers.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(rf"^(?:{pattern})$"), list(first))


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping."""
    try:
        content = yaml.load(path.read_text(), PlainNumbers)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: must be a mapping of fields, not {type(content).__name__}")
    return content


def read_recipe(name: str, above: tuple[str, ...] = ()) -> dict[str, Any]:
    """A recipe's fields; `base: OTHER` at its top takes the other's fields first."""
    known = sorted(file.stem for file in (job_folder() / "recipes").glob("*.yaml"))
    fields = read_yaml(shipped_or_path("recipes", name, known))
    base = fields.pop("base", None)
    if base is None:
        return fields
    if not isinstance(base, str) or base in (*above, name):
        raise UserError(f"recipe {name}: base must name another recipe, got {base!r}")
    return merge(read_recipe(base, (*above, name)), fields)


def load_recipe(name: str) -> JobSpec:
    """A recipe as the spec of its job."""
    fields = read_recipe(name)
    kind = JOBS.get(str(fields.get("job")))
    if kind is None:
        raise UserError(f"recipe {name}: field job must be one of {', '.join(JOBS)}")
    return build(kind, fields, f"recipe {name}")


def read_space(name: str) -> SpaceSpec:
    """A sweep space by its name or path."""
    path = shipped_or_path("spaces", name, space_names())
    try:
        return SpaceSpec.model_validate(read_yaml(path))
    except ValidationError as error:
        raise UserError(f"space {path.name}: {space_problems(error)}") from None


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`base` with `over` on top, node by node."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def parse_assignments(assignments: list[str]) -> dict[str, Any]:
    """`["train.epochs=3", "data.image_size=64"]` as nested fields; values are read as YAML."""
    fields: dict[str, Any] = {}
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", path):
            raise UserError(f"--set {assignment!r}: must be FIELD=VALUE, like train.epochs=3")
        try:
            value = yaml.load(text, PlainNumbers)
        except yaml.YAMLError:
            raise UserError(f"--set {assignment!r}: {text!r} is not a YAML value") from None
        fields = merge(fields, nest(path, value))
    return fields


def nest(path: str, value: Any) -> dict[str, Any]:
    """`nest("a.b", 1)` is `{"a": {"b": 1}}`."""
    for part in reversed(path.split(".")):
        value = {part: value}
    assert isinstance(value, dict)
    return value


def build(kind: type[AnySpec], fields: dict[str, Any], where: str) -> AnySpec:
    """The checked spec; all its mistakes are named in one UserError that begins with `where`."""
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise UserError(f"{where}: {problems(error, kind)}") from None


def dump(spec: JobSpec) -> str:
    """A spec as YAML, every field written out."""
    return yaml.safe_dump(spec.model_dump(mode="json", by_alias=True), sort_keys=False)
