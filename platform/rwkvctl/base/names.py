"""Names that leave this machine, and what they may be made of."""

from __future__ import annotations

import re

MODEL = re.compile(r"[A-Za-z0-9][\w\-. ]*")
ALIAS = re.compile(r"[\w\-]+")
RESERVED_ALIAS = re.compile(r"latest|v\d+", re.IGNORECASE)


def model_name_problem(name: str) -> str | None:
    """Why a registered model cannot have this name; None if it can.

    >>> model_name_problem("a/b:c")
    "model name 'a/b:c': use letters, digits, '_', '-' and '.' only, a letter or a digit first"
    """
    if MODEL.fullmatch(name):
        return None
    return f"model name {name!r}: use letters, digits, '_', '-' and '.' only, a letter or a digit first"


def alias_problem(alias: str) -> str | None:
    """Why an alias of a registered model cannot be called so; None if it can.

    >>> alias_problem("v2")
    "alias 'v2': `latest` and v with a number are MLflow's own; choose another, such as champion"
    """
    if RESERVED_ALIAS.fullmatch(alias):
        return f"alias {alias!r}: `latest` and v with a number are MLflow's own; choose another, such as champion"
    return None if ALIAS.fullmatch(alias) else f"alias {alias!r}: use letters, digits, '_' and '-' only"
