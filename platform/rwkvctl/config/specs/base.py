"""What every spec has in common: no unknown keys, immutable, all mistakes reported at once."""

from __future__ import annotations

import itertools
from types import NoneType
from typing import Annotated, Any, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from rwkvctl.base.suggestions import did_you_mean
from rwkvctl.base.uris import mask, refuse_secrets

Address = Annotated[str, AfterValidator(refuse_secrets)]
"""A path or URI that is written down with the spec, in places that others read: it must not contain a secret."""


class Spec(BaseModel):
    """A node of a job spec. Unknown keys are errors; a spec does not change once it is made."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        populate_by_name=True,
        validate_default=True,
        use_attribute_docstrings=True,
    )


KINDS = (("base", "finetune"), ("base", "pretrain"))
"""Of a sweep's base, as pydantic names them in the place of an error."""


def problems(error: ValidationError, spec: type[Spec]) -> str:
    """Everything that is wrong with a spec, on one line, each with the path of its field."""
    return listed([describe(item, spec) for item in error.errors()])


def listed(found: list[str]) -> str:
    """One problem, or several with their number."""
    return found[0] if len(found) == 1 else f"{len(found)} problems: " + "; ".join(found)


def describe(item: Any, spec: type[Spec]) -> str:
    """One pydantic error as `path: what is wrong`."""
    path = ".".join(str(part) for part in _fields_of(item["loc"]))
    if item["type"] == "extra_forbidden":
        return f"{path}: unknown field{near(item['loc'], spec)}"
    if item["type"] == "missing":
        return f"{path}: missing"
    if item["type"] in ("dict_type", "model_type", "model_attributes_type"):
        return f"{path}: must be a mapping of fields, got {mask(repr(item['input']))}"
    if item["type"] in ("list_type", "tuple_type"):
        return f"{path}: must be a list, got {mask(repr(item['input']))}"
    if item["type"] == "too_short" and not item["input"]:
        return f"{path}: must not be empty"
    message = item["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    if not path:
        return message
    given = "" if isinstance(item["input"], dict) else f", got {mask(repr(item['input']))}"
    return f"{path}: {message[0].lower()}{message[1:]}{given}"


def _fields_of(location: tuple[str | int, ...]) -> list[str | int]:
    """Without the kind of a sweep's base, which pydantic puts behind it."""
    return [part for before, part in zip(("", *location), location, strict=False) if (before, part) not in KINDS]


def near(location: tuple[str | int, ...], spec: type[Spec]) -> str:
    """` (did you mean ...?)` for an unknown field, from the fields of the node that it stands in."""
    node: Any = spec
    for before, part in zip(("", *location), location[:-1], strict=False):
        if (before, part) in KINDS:
            continue
        field = node.model_fields.get(str(part))
        node = field.annotation if field is not None else None
        if part == "base" and (kinds := get_args(node)):
            node = get_args(kinds[int(("base", "pretrain") in itertools.pairwise(location))])[0]
        if NoneType in (either := get_args(node)):  # one that may be null
            node = next(kind for kind in either if kind is not NoneType)
        if not (isinstance(node, type) and issubclass(node, BaseModel)):
            return ""
    known = f"known: {', '.join(node.model_fields)}"
    return f" ({did_you_mean(str(location[-1]), node.model_fields, known)})"
