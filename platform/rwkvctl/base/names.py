"""Names that leave this machine, and what they may be made of."""

from __future__ import annotations

import re

MODEL = re.compile(r"[A-Za-z0-9][\w\-. ]*")


def model_name_problem(name: str) -> str | None:
    """Why a registered model cannot have this name; None if it can.

    >>> model_name_problem("a/b:c")
    "model name 'a/b:c': use letters, digits, '_', '-' and '.' only, a letter or a digit first"
    """
    if MODEL.fullmatch(name):
        return None
    return f"model name {name!r}: use letters, digits, '_', '-' and '.' only, a letter or a digit first"
