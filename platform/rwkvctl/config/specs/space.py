"""A sweep space: fields of a fine-tuning spec, and the values that each may take."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from decimal import Decimal
from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag, ValidationError, field_validator, model_validator

from rwkvctl.config.specs.base import Spec, describe, listed
from rwkvctl.config.specs.parts import Positive

Finite = Annotated[float, Field(allow_inf_nan=False)]
Point = dict[str, Any]
Conditions = dict[str, list[Any]]
"""Earlier parameters of the space, and the values of each with which a parameter exists."""


class Varied(Spec):
    """What all kinds of values have."""

    when: Annotated[Conditions, Field(default_factory=dict)]
    """The parameter exists only where earlier ones have one of these values; elsewhere the base's value stands."""

    @field_validator("when", mode="before", json_schema_input_type=dict[str, Any])
    @classmethod
    def _lists(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {path: values if isinstance(values, list) else [values] for path, values in value.items()}


class Choice(Varied):
    """One of a list."""

    choice: Annotated[list[Any], Field(min_length=1)]

    @model_validator(mode="after")
    def _distinct(self) -> Choice:
        for index, value in enumerate(self.choice):
            for twin in (other for other in self.choice[:index] if other == value):
                first, second = json.dumps(twin, default=str), json.dumps(value, default=str)
                raise ValueError(f"{first} appears twice" if first == second else f"{first} and {second} are one value")
        return self

    def values(self) -> list[Any]:
        """All values."""
        return list(self.choice)

    def ends(self) -> list[Any]:
        """Values that stand for all."""
        return self.values()


class IntRange(Varied):
    """An integer from low to high, both included."""

    int: tuple[int, int]
    step: Positive = 1
    log: bool = False
    """Drawn on a logarithmic scale."""

    @model_validator(mode="after")
    def _ascends(self) -> IntRange:
        check_ascending(*self.int)
        if self.log and self.int[0] < 1:
            raise ValueError("low must be above 0 on a logarithmic scale")
        if self.log and self.step != 1:
            raise ValueError("give step or log, not both")
        return self

    def values(self) -> list[Any]:
        """All values."""
        return list(range(self.int[0], self.int[1] + 1, self.step))

    def ends(self) -> list[Any]:
        """Values that stand for all: a range of integers may have holes where a field has none, so all of them."""
        return self.values()


class FloatRange(Varied):
    """A number from low to high, on a linear or a logarithmic scale."""

    float: tuple[Finite, Finite]
    log: bool = False
    step: Annotated[Finite, Field(gt=0)] | None = None
    """low, low + step, and so on, as far as high."""

    @model_validator(mode="after")
    def _ascends(self) -> FloatRange:
        if self.log and self.float[0] <= 0:
            raise ValueError("low must be above 0 on a logarithmic scale")
        if self.log and self.step is not None:
            raise ValueError("give step or log, not both")
        check_ascending(*self.float)
        return self

    def values(self) -> list[Any] | None:
        """All values, None if they cannot be counted."""
        low, high = self.float
        if self.step is None:
            return [low] if low == high else None
        first, step = Decimal(str(low)), Decimal(str(self.step))
        return [float(first + i * step) for i in range(int((Decimal(str(high)) - first) / step) + 1)]

    def ends(self) -> list[Any]:
        """Values that stand for all."""
        found = self.values() or list(self.float)
        return [found[0], found[-1]]


def check_ascending(low: float, high: float) -> None:
    """Refuse a range whose ends are exchanged."""
    if low > high:
        raise ValueError("must be [low, high], low first")


KINDS: dict[str, type[Choice | IntRange | FloatRange]] = {"choice": Choice, "int": IntRange, "float": FloatRange}


def kind_of(value: Any) -> str | None:
    """By which of its keys a node of `params` is recognised; None if by none or by several."""
    keys = value if isinstance(value, dict) else vars(value) if isinstance(value, Spec) else {}
    found = [kind for kind in KINDS if kind in keys]
    return found[0] if len(found) == 1 else None


Values = Annotated[
    Annotated[Choice, Tag("choice")] | Annotated[IntRange, Tag("int")] | Annotated[FloatRange, Tag("float")],
    Discriminator(
        kind_of,
        custom_error_type="values",
        custom_error_message="must be one of {choice: [...]}, {int: [low, high]} and {float: [low, high]}",
    ),
]


class SpaceSpec(Spec):
    """What a sweep varies: paths of a fine-tuning spec and the values that each may take."""

    recipe: str = "binary"
    """The recipe that is varied when neither the command line nor the data names one; one of networks over three axes
    when the command line names none."""
    params: Annotated[dict[str, Values], Field(min_length=1)]
    cover: bool = False
    """Try the combinations in their order instead of letting Optuna choose (finite spaces only). Either way a finite
    space is tried at most once."""
    trials: Positive = 20

    @model_validator(mode="after")
    def _conditions_can_hold(self) -> SpaceSpec:
        seen: list[str] = []
        for path, values in self.params.items():
            for other, wanted in values.when.items():
                self._check_condition(path, other, wanted, seen)
            seen.append(path)
        return self

    def _check_condition(self, path: str, other: str, wanted: list[Any], seen: list[str]) -> None:
        where = f"params.{path}.when.{other}"
        if other not in seen:
            raise ValueError(f"{where}: must be a parameter that stands before {path}")
        known = self.params[other].values()
        if known is None:
            raise ValueError(f"{where}: is a range of floats, which hardly ever has just one value; use a choice")
        if not wanted:
            raise ValueError(f"{where}: must not be empty")
        for value in wanted:
            if not any(same(value, one) for one in known):
                raise ValueError(f"{where}: {value!r} is none of its values")

    @model_validator(mode="after")
    def _cover_ends(self) -> SpaceSpec:
        endless = self.endless()
        if self.cover and endless:
            raise ValueError(f"cover: is for finite spaces, and params.{endless} is a range of floats")
        return self

    def endless(self) -> str | None:
        """The first parameter whose values cannot be counted."""
        return next((path for path, values in self.params.items() if values.values() is None), None)

    def exists(self, path: str, point: Point) -> bool:
        """Whether a parameter is one of a point's, as far as the point goes; what its conditions name stands before."""
        return all(
            other in point and any(same(point[other], value) for value in wanted)
            for other, wanted in self.params[path].when.items()
        )

    def begun(self, point: Point) -> str | None:
        """The first parameter that a point lacks; None for a whole one."""
        return next((path for path in self.params if path not in point and self.exists(path, point)), None)

    def axes(self) -> dict[str, list[Any]] | None:
        """All values of every field of a finite space; None for a space that has no end of them."""
        axes = {path: values.values() for path, values in self.params.items()}
        finite = {path: axis for path, axis in axes.items() if axis is not None}
        return finite if len(finite) == len(axes) else None

    def size(self, given: Point | None = None) -> int | None:
        """How many points a finite space has, of those with the `given` values; else None."""
        axes = self.axes()
        return None if axes is None else self._count(axes, list(axes), given or {})

    def _count(self, axes: dict[str, list[Any]], left: list[str], point: Point) -> int:
        asked = {other for path in left for other in self.params[path].when}
        total = 1
        for index, path in enumerate(left):
            if path in point or not self.exists(path, point):
                continue
            if path in asked:
                return total * sum(self._count(axes, left[index + 1 :], point | {path: v}) for v in axes[path])
            total *= len(axes[path])
        return total

    def points(self) -> Iterator[Point]:
        """All points of a finite space, in order."""
        axes = self.axes()
        assert axes is not None, "an endless space has no order"
        yield from self._points(axes, list(axes), {})

    def _points(self, axes: dict[str, list[Any]], left: list[str], point: Point) -> Iterator[Point]:
        if not left:
            yield point
        elif not self.exists(left[0], point):
            yield from self._points(axes, left[1:], point)
        else:
            for value in axes[left[0]]:
                yield from self._points(axes, left[1:], point | {left[0]: value})

    def extremes(self, most: int) -> Iterator[Point]:
        """Combinations of the ends of ranges and of all choices; with more than `most`, one field at a time."""
        axes = {path: values.ends() for path, values in self.params.items()}
        if math.prod(map(len, axes.values())) <= most:
            yield from self._points(axes, list(axes), {})
        else:
            yield from (self.needed(path) | {path: value} for path, axis in axes.items() for value in axis)

    def needed(self, path: str) -> Point:
        """The least that a parameter needs of others to exist."""
        point: Point = {}
        for other, wanted in self.params[path].when.items():
            point |= self.needed(other) | {other: wanted[0]}
        return point


def key(value: Any) -> str:
    """A value or a point as text that can be looked up: true is not 1, and floats have 12 digits, since the steps of a
    range are not the same floats however they are counted."""

    def rounded(node: Any) -> Any:
        if isinstance(node, dict):
            return {name: rounded(inner) for name, inner in node.items()}
        return float(f"{node:.12g}") if isinstance(node, float) else node

    return json.dumps(rounded(value), sort_keys=True)


def same(a: Any, b: Any) -> bool:
    """Whether two values are one."""
    return key(a) == key(b)


def space_problems(error: ValidationError) -> str:
    """What is wrong with the YAML file of a space, on one line."""
    return listed([_describe(item) for item in error.errors()])


def _describe(item: Any) -> str:
    location = item["loc"]
    if location[-1:] == ("[key]",):
        return f"params.{location[1]}: must be the path of a field, as train.epochs"
    if location[:1] != ("params",) or len(location) < 3 or location[2] not in KINDS:
        return describe(item, SpaceSpec)
    said = describe({**item, "loc": location[3:]}, KINDS[location[2]])
    return f"params.{location[1]}{'.' if location[3:] else ': '}{said}"
