"""The second half of a line about an unknown name: what was meant, or what there is."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

MOST_CHOICES = 40


def did_you_mean(word: str, choices: Iterable[str], otherwise: str | None = None) -> str:
    """`did you mean busi?`, else `otherwise`, else the choices.

    >>> did_you_mean("busy", ["busi", "acdc"])
    'did you mean busi?'
    >>> did_you_mean("x", ["busi", "acdc"])
    'choose from busi, acdc'
    """
    known = list(choices)
    matches = difflib.get_close_matches(str(word), known)
    if matches:
        return f"did you mean {' or '.join(matches)}?"
    if otherwise is not None:
        return otherwise
    more = f" and {len(known) - MOST_CHOICES} more" if len(known) > MOST_CHOICES else ""
    return f"choose from {', '.join(known[:MOST_CHOICES])}{more}"
