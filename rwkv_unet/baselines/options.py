"""Whether an option is one that a network has."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence

from torch import nn


def check_options(name: str, create: Callable[..., nn.Module], options: Iterable[str], *, taken: Iterable[str]) -> None:
    """ValueError for an option that is no named argument of `create`, or one that is `taken`: not the user's."""
    parameters = inspect.signature(create).parameters.values()
    own = [x.name for x in parameters if x.kind is not x.VAR_KEYWORD and x.name not in taken]
    for key in options:
        if key not in own:
            raise ValueError(f"model.{key} does not apply to {name}, which has {', '.join(own) or 'no options'}")


def check_depths(depths: Sequence[int], levels: int, name: str = "depths") -> None:
    """ValueError unless `depths` are the numbers of blocks of so many levels."""
    fits = isinstance(depths, Sequence) and all(isinstance(depth, int) and depth > 0 for depth in depths)
    if not fits or len(depths) != levels:
        raise ValueError(f"model.{name} must be the blocks of {levels} levels, not {depths!r}")


def check_dims(dims: Sequence[int], levels: int | None = None) -> None:
    """ValueError unless `dims` are the widths of `levels` levels, or of two or more."""
    fits = isinstance(dims, Sequence) and len(dims) >= 2 and all(isinstance(dim, int) and dim > 0 for dim in dims)
    if not fits or levels not in (None, len(dims)):
        raise ValueError(f"model.dims must be the widths of {levels or 'two or more'} levels, not {dims!r}")
