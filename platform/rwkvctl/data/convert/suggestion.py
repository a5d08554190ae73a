"""What `data doctor` proposes that `prepare` be told, and what that leaves open."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

_SHOWN = 6
_MOST_CLASSES = 255


@dataclass
class Suggestion:
    """choices: options of `prepare` by their names in Python, as they are typed; question: what they leave open, in one
    line, or ""."""

    choices: dict[str, str]
    question: str = ""

    @property
    def options(self) -> str:
        """As they are typed."""
        words = ((f"--{name.replace('_', '-')}", value) for name, value in self.choices.items())
        return " ".join(f"{option} {shlex.quote(value)}" for option, value in words)


def classes_of(values: Iterable[float]) -> Suggestion:
    """`--classes` for labels, where there are more than two classes."""
    found = sorted({int(value) for value in values})
    if not found or len(found) > _MOST_CLASSES or set(found) <= {0, 1} or set(found) <= {0, 255}:
        return Suggestion({})
    kept = [value for value in found if value not in (0, 255)]
    whole = kept == list(range(1, len(kept) + 1))
    names = [f"label_{value}" if whole else f"label_{value}={value}" for value in kept]
    text = ",".join(["background" if whole else "background=0", *names])
    return Suggestion({"classes": text}, f"classes are called by their labels {listed(kept)}; name them in --classes")


def listed(values: Sequence[object]) -> str:
    return ", ".join(map(str, values[:_SHOWN])) + (", ..." if len(values) > _SHOWN else "")


def joined(parts: Sequence[Suggestion]) -> Suggestion:
    choices: dict[str, Any] = {}
    for part in parts:
        choices |= part.choices
    return Suggestion(choices, "; ".join(part.question for part in parts if part.question))
