"""Ray's cluster token: clusters ask for one by default, clients send it only when they are told to."""

from __future__ import annotations

import os
from pathlib import Path


def send_token_if_there_is_one() -> None:
    """Set `RAY_AUTH_MODE=token` where there is a token and the user has not chosen a mode; before ray is imported."""
    if token() is not None:
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def token() -> str | None:
    """The token as Ray would find it; None where there is none."""
    if given := os.environ.get("RAY_AUTH_TOKEN"):
        return given
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    try:
        return path.read_text().strip() or None
    except OSError:
        return None


def headers() -> dict[str, str]:
    """What a request to a cluster carries."""
    found = token() if os.environ.get("RAY_AUTH_MODE", "token") == "token" else None
    return {} if found is None else {"Authorization": f"Bearer {found}"}


def advice() -> str:
    """What to do about a cluster that lets nobody in without its token."""
    if not headers():
        return "asks for a token; set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to a file with it"
    return "refuses this token; set RAY_AUTH_TOKEN (or the file in RAY_AUTH_TOKEN_PATH) to that of the cluster"
