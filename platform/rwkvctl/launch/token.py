"""Ray's cluster token: clusters ask for one by default, clients send it only when they are told to."""

from __future__ import annotations

import os
from pathlib import Path


def send_token_if_there_is_one() -> None:
    """Set `RAY_AUTH_MODE=token` where there is a token and the user has not chosen a mode; before ray is imported."""
    at_hand = (
        os.environ.get("RAY_AUTH_TOKEN")
        or os.environ.get("RAY_AUTH_TOKEN_PATH")
        or (Path.home() / ".ray" / "auth_token").is_file()
    )
    if at_hand:
        os.environ.setdefault("RAY_AUTH_MODE", "token")
