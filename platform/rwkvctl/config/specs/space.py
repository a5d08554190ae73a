"""A sweep space: fields of a fine-tuning spec, and the values that each may take."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag, ValidationError, model_validator

from rwkvctl.config.specs.base import Spec, describe, listed
from rwkvctl.config.specs.parts import Positive

Finite = Annotated[float, Field(allow_inf_nan=False)]


class Choice(Spec):
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


class IntRange(Spec):
    """An integer from low to high, both included."""

    int: tuple[int, int]
    step: Positive = 1

    @model_validator(mode="after")
    def _ascends(self) -> IntRange:
        check_ascending(*self.int)
        return self

    def values(self) -> list[Any]:
        """All values."""
        return list(range(self.int[0], self.int[1] + 1, self.step))

    def ends(self) -> list[Any]:
        """Values that stand for all: a range of integers may have holes where a field has none, so all of them."""
        return self.values()


class FloatRange(Spec):
    """A number from low to high, on a linear or a logarithmic scale."""

    float: tuple[Finite, Finite]
    log: bool = False

    @model_validator(mode="after")
    def _ascends(self) -> FloatRange:
        if self.log and self.float[0] <= 0:
            raise ValueError("low must be above 0 on a logarithmic scale")
        check_ascending(*self.float)
        return self

    def values(self) -> list[Any] | None:
        """All values, None if they cannot be counted."""
        return [self.float[0]] if self.float[0] == self.float[1] else None

    def ends(self) -> list[Any]:
        """Values that stand for all."""
        return list(self.float)


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
    """The recipe that is varied when neither the command line nor the data names one."""
    params: Annotated[dict[str, Values], Field(min_length=1)]
    cover: bool = False
    """Try the combinations in their order instead of letting Optuna choose (finite spaces only). Either way a finite
    space is tried at most once."""
    trials: Positive = 20

    @model_validator(mode="after")
    def _cover_ends(self) -> SpaceSpec:
        endless = [path for path, values in self.params.items() if values.values() is None]
        if self.cover and endless:
            raise ValueError(f"cover: is for finite spaces, and params.{endless[0]} is a range of floats")
        return self

    def axes(self) -> dict[str, list[Any]] | None:
        """All values of every field of a finite space; None for a space that has no end of them."""
        axes = {path: values.values() for path, values in self.params.items()}
        finite = {path: axis for path, axis in axes.items() if axis is not None}
        return finite if len(finite) == len(axes) else None

    def size(self) -> int | None:
        """How many points a finite space has, else None."""
        axes = self.axes()
        return None if axes is None else math.prod(map(len, axes.values()))

    def extremes(self, most: int) -> Iterator[dict[str, Any]]:
        """Combinations of the ends of ranges and of all choices; with more than `most`, one field at a time."""
        axes = {path: values.ends() for path, values in self.params.items()}
        if math.prod(map(len, axes.values())) <= most:
            yield from product(axes)
        else:
            yield from ({path: value} for path, axis in axes.items() for value in axis)


def product(axes: dict[str, list[Any]]) -> Iterator[dict[str, Any]]:
    """All combinations of one value an axis, in order."""
    return (dict(zip(axes, point, strict=True)) for point in itertools.product(*axes.values()))


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
