"""Ray clusters of several nodes on this machine, of which the test's own process is the driver."""

from __future__ import annotations

from typing import Any

import pytest


def trust(patch: pytest.MonkeyPatch) -> None:
    """Have daemons and driver use this user's token, as Ray does where nothing else is said.

    A process keeps for ever what it has met first, and an earlier test's `ray.init` has met this.
    """
    from ray._private.authentication.authentication_token_setup import ensure_token_if_auth_enabled
    from ray._raylet import Config

    patch.setenv("RAY_AUTH_MODE", "token")
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        patch.delenv(name, raising=False)
    Config.initialize("")
    ensure_token_if_auth_enabled(create_token_if_missing=True)


def new_node(cluster: Any, **options: Any) -> Any:
    """Ray gives a node half a minute to start, which a busy machine may need longer for."""
    for _ in range(5):
        try:
            return cluster.add_node(**options)
        except Exception as error:
            if "timed out during startup" not in str(error):
                raise
    raise AssertionError("no node could be started")
