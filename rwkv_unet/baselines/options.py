"""Whether an option is one that a network has."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable

from torch import nn


def check_options(name: str, create: Callable[..., nn.Module], options: Iterable[str], *, taken: Iterable[str]) -> None:
    """ValueError for an option that is no named argument of `create`, or one that is `taken`: not the user's."""
    parameters = inspect.signature(create).parameters.values()
    own = [x.name for x in parameters if x.kind is not x.VAR_KEYWORD and x.name not in taken]
    for key in options:
        if key not in own:
            raise ValueError(f"model.{key} does not apply to {name}, which has {', '.join(own) or 'no options'}")
