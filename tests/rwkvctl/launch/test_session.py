"""Ray of a process's own on a machine that is too busy for it."""

from __future__ import annotations

import pytest
import ray

from rwkvctl.base.errors import TransientError
from rwkvctl.launch.session import start_here


def test_a_start_that_was_too_slow_is_tried_again(monkeypatch: pytest.MonkeyPatch):
    failures = ["The current node timed out during startup. This could happen because"] * 2

    def init(address: str, **options: object) -> None:
        assert address == "local"
        if failures:
            raise Exception(failures.pop())  # as Ray does

    monkeypatch.setattr(ray, "init", init)
    start_here()
    failures += ["timed out during startup"] * 3
    with pytest.raises(TransientError, match="in 3 starts: it is too busy; try again later"):
        start_here()
    failures.append("something else")
    with pytest.raises(Exception, match="something else"):
        start_here()
