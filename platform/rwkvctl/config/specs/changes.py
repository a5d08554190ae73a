"""What may differ between a run's spec and the one that it is continued with: where it runs and what it tells, never
what it computes.

A field that no table names may not change, so a new field needs a line here only if it may.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

MAY_CHANGE = (
    *("name", "storage", "cluster", "tracking"),
    *("data.workers", "data.path"),  # the data themselves are compared by their fingerprint
    *("train.log_steps", "train.checkpoint_steps", "train.profile_steps"),
    *("train.on_nan", "train.patience", "train.activation_checkpointing"),
    *("trials", "concurrency"),
)
"""Fields, or groups of fields, that change nothing of what is computed; of a sweep's `base` too."""

MAY_CHANGE_IF: dict[str, tuple[str, tuple[Any, ...]]] = {
    "train.epochs": ("optimizer.schedule", ("constant", "acdc_as_coded")),  # the others stretch over all epochs
}
"""Fields that change nothing as long as another field has one of these values."""

ABSENT_MEANS: dict[str, Any] = {"train.batch_norm": "local"}
"""What was done before a field existed, where that is not its default: the checkpoints of then do not say."""


def differences(before: Mapping[str, Any], after: Mapping[str, Any], *, longer: bool = True) -> list[str]:
    """Fields in which two specs would compute something else, as `path: old -> new`.

    Args:
        longer: take the conditions of `MAY_CHANGE_IF` into account, as for a run that is continued by its name.
    """
    old, new = flatten(before), flatten(after)
    return [
        f"{path}: {old.get(path)} -> {new.get(path)}"
        for path in sorted(old.keys() | new.keys())
        if old.get(path) != new.get(path) and not may_change(path) and not (longer and harmless(path, old, new))
    ]


def may_change(path: str) -> bool:
    """Whether a field is one of those in `MAY_CHANGE`."""
    own = path.removeprefix("base.")
    return any(own == free or own.startswith(f"{free}.") for free in MAY_CHANGE)


def harmless(path: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether the condition of a field in `MAY_CHANGE_IF` holds in both specs."""
    if path not in MAY_CHANGE_IF:
        return False
    field, values = MAY_CHANGE_IF[path]
    return old.get(field) in values and new.get(field) in values


def with_absent(fields: Mapping[str, Any]) -> dict[str, Any]:
    """A stored spec, which has all fields of its day, with those of `ABSENT_MEANS` that came later."""
    filled = copy.deepcopy(dict(fields))
    for path, value in ABSENT_MEANS.items():
        for start in (filled, filled.get("base")):
            *groups, field = path.split(".")
            group = start
            for name in groups:
                group = group.get(name) if isinstance(group, dict) else None
            if isinstance(group, dict):
                group.setdefault(field, value)
    return filled


def flatten(fields: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` as `{"a.b": 1}`."""
    flat: dict[str, Any] = {}
    for key, value in fields.items():
        path = f"{prefix}{key}"
        flat |= flatten(value, f"{path}.") if isinstance(value, dict) else {path: value}
    return flat


def few(lines: list[str], most: int = 3) -> str:
    """The first lines, each cut to a readable length, and how many more there are."""
    shown = "; ".join(line if len(line) < 80 else f"{line[:77]}..." for line in lines[:most])
    return shown if len(lines) <= most else f"{shown}; and {len(lines) - most} more"
