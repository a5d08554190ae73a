"""From the point of a sweep space to the fine-tuning spec of its trial, and whether a space fits its base at all."""

from __future__ import annotations

import json
from typing import Any

from pydantic import ValidationError

from rwkvctl.base.errors import UserError
from rwkvctl.config.specs.base import Spec, describe
from rwkvctl.config.specs.jobs import FinetuneSpec, PretrainSpec, TuneSpec
from rwkvctl.config.specs.load import merge, nest

FIXED = ("job", "name", "storage", "cluster", "tracking", "data.path", "data.dataset", "data.workers")
"""What is the same for all trials: where they run, and what data they are compared on."""
MOST_TRIED = 500
"""Combinations of a space that are checked before it is started; of a larger one, each field by itself."""


Trial = FinetuneSpec | PretrainSpec
"""Of folds it may be the training of a classifier."""


def trial_spec(base: Trial, point: dict[str, Any]) -> Trial:
    """The spec that trains a point; pydantic's ValidationError for values that do not go together.

    A trial has to be scored to be compared. Where the recipe never validates, its last weights are scored, once.
    """
    fields = base.model_dump(mode="json", by_alias=True)
    if "augment.preset" in point and isinstance(
        base, FinetuneSpec
    ):  # the base's preset is written out; only what differs from it was chosen
        fields["augment"] = base.augment.own()
    for path, value in point.items():
        fields = merge(fields, nest(path, value))
    spec = type(base).model_validate(fields)
    if spec.train.validate_every:
        return spec
    return spec.model_copy(update={"train": spec.train.model_copy(update={"validate_every": spec.train.epochs})})


def check_space(spec: TuneSpec) -> list[Trial]:
    """The trials of a space, or those at its ends, each a valid spec; UserError for the first that is none."""
    where = f"space {spec.space_name}: params"
    for path, values in spec.space.params.items():
        if any(path == fixed or path.startswith(f"{fixed}.") for fixed in FIXED):
            raise UserError(f"{where}.{path}: is the same for all trials; set it with --set {path}=...")
        for value in values.ends():
            _check_value(spec.base, path, spec.space.needed(path) | {path: value}, where)
    return [_trial(spec.base, point, where) for point in spec.space.extremes(MOST_TRIED)]


def _check_value(base: Trial, path: str, point: dict[str, Any], where: str) -> None:
    """Whether a value, with what it needs of others, is one that the field keeps as it is written."""
    value = point[path]
    if isinstance(value, dict):
        raise UserError(
            f"{where}.{path}: {value!r} is a mapping; name the fields in it, as {path}.{next(iter(value), 'x')}"
        )
    if path == "train.validate_every" and value == 0:
        raise UserError(f"{where}.{path}: 0 never validates, and trials are compared by their validation")
    try:
        kept = _at(trial_spec(base, point), path)
    except ValidationError as error:
        raise UserError(f"{where}.{path}: {_reason(error, base, path)}") from None
    if isinstance(kept, Spec):
        raise UserError(f"{where}.{path}: is a group of fields; name one of them, as {path}.{next(iter(vars(kept)))}")
    if _json(kept) != _json(value):
        raise UserError(f"{where}.{path}: {value!r} would be read as {kept!r}; write it so")


def _trial(base: Trial, point: dict[str, Any], where: str) -> Trial:
    try:
        return trial_spec(base, point)
    except ValidationError as error:
        shown = ", ".join(f"{path}={value}" for path, value in point.items())
        raise UserError(f"{where}: {shown}: {_reason(error, base)}") from None


def _reason(error: ValidationError, base: Trial, path: str = "") -> str:
    return describe(error.errors()[0], type(base)).removeprefix(f"{path}: ")


def _at(node: Any, path: str) -> Any:
    for part in path.split("."):
        node = node[part] if isinstance(node, dict) else getattr(node, part)
    return node


def _json(value: Any) -> str:
    """Equal for what YAML writes alike: 1 and 1.0, a list and a tuple; not 1 and true."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(_json(item) for item in value)}]"
    return repr(float(value)) if isinstance(value, int | float) and not isinstance(value, bool) else json.dumps(value)
