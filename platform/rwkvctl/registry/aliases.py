"""Where an alias points, who has moved it when, and how it goes back.

Every move is a tag of the registered model, `rwkvctl.alias.<alias>.<number>`, so that the history is kept where the
alias is and every client sees it. MLflow sets an alias without a look at where it points; of two promotions at once one
would undo the other unseen. So a move holds a lock that is exact with any server: a registered model of a certain name,
which MLflow makes once.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from rwkvctl.base.errors import TransientError, UserError
from rwkvctl.registry.versions import LOCK, aliases_of, find_version

if TYPE_CHECKING:
    from mlflow import MlflowClient

HISTORY_TAG = "rwkvctl.alias."
LONGEST_ENTRY = 4900
"""Characters; MLflow takes 5,000."""
DEAD_AFTER = 30.0
"""Seconds for which one holder keeps a lock that is held for milliseconds: it was killed."""


@dataclass(frozen=True)
class Move:
    """One move of an alias."""

    alias: str
    number: int
    """Counts the moves of this alias from 1."""
    kind: str
    """`promote` or `rollback`."""
    version: int
    before: int | None
    """Where it pointed; null where it did not exist."""
    who: str
    when: str
    """UTC, as 2026-11-26T20:15:00Z."""
    checks: list[str] = field(default_factory=list)
    """A line for each rule that the version was held to."""


def move(
    client: MlflowClient, name: str, alias: str, version: int, *, expected: int | None, kind: str, checks: Sequence[str]
) -> Move:
    """Let an alias point to a version, if it still points to `expected`, and note it.

    Raises:
        UserError: somebody has moved the alias since it was looked at.
        TransientError: another client keeps moving it.
    """
    with locked(client, name, alias):
        now = aliases_of(client, name).get(alias)
        if now != expected:
            raise UserError(
                f"alias {alias} of {name}: was moved from {shown(expected)} to {shown(now)} meanwhile, by somebody "
                f"else; nothing was changed: see rwkvctl model history {name}, and try again"
            )
        number = max((entry.number for entry in history(client, name, alias)), default=0) + 1
        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        entry = Move(alias, number, kind, version, expected, who(), when, list(checks))
        client.set_registered_model_tag(name, f"{HISTORY_TAG}{alias}.{number:06d}", as_text(entry))
        client.set_registered_model_alias(name, alias, str(version))
    return entry


def roll_back(client: MlflowClient, name: str, alias: str) -> Move:
    """Let an alias point to where it did before the last move that was not undone yet.

    Raises:
        UserError: there is no such alias, nothing to go back to, or another program has moved it since.
    """
    now = aliases_of(client, name).get(alias)
    entries = history(client, name, alias)
    if now is None:
        raise UserError(f"{name}: has no alias {alias}; see rwkvctl model show {name}")
    course = standing(entries)
    if not course or course[-1] != now:
        raise UserError(
            f"alias {alias} of {name}: points to version {now}, where another program has moved it; its history knows "
            f"no way back: rwkvctl model promote {name} VERSION --alias {alias}"
        )
    if len(course) < 2:
        raise UserError(
            f"alias {alias} of {name}: pointed nowhere before version {now}: there is nothing to go back to"
        )
    find_version(client, name, course[-2])
    return move(client, name, alias, course[-2], expected=now, kind="rollback", checks=[])


def standing(entries: Sequence[Move]) -> list[int]:
    """The versions that an alias has pointed to, without those that were undone; the last is where it points."""
    course: list[int] = []
    for entry in entries:
        if entry.kind == "rollback" and len(course) > 1 and course[-2] == entry.version:
            course.pop()
            continue
        if entry.before is not None and (not course or course[-1] != entry.before):
            course.append(entry.before)  # another program has moved it there
        course.append(entry.version)
    return course


def history(client: MlflowClient, name: str, alias: str | None = None) -> list[Move]:
    """The moves of an alias, or of all, the oldest first; tags that others have written into are left out."""
    found = []
    for key, value in client.get_registered_model(name).tags.items():
        if key.startswith(HISTORY_TAG):
            with contextlib.suppress(ValueError, TypeError):
                found.append(Move(**json.loads(value)))
    chosen = [entry for entry in found if alias in (None, entry.alias)]
    return sorted(chosen, key=lambda entry: (entry.when, entry.alias, entry.number))


def as_text(entry: Move) -> str:
    """As the value of a tag; the last checks are left out where they are too many for one."""
    fields: dict[str, Any] = asdict(entry)
    while len(text := json.dumps(fields)) > LONGEST_ENTRY:
        fields["checks"] = [*fields["checks"][:-2], "..."]
    return text


def shown(version: int | None) -> str:
    return "nothing" if version is None else f"version {version}"


def who() -> str:
    """User and machine, or the user that the tracking server knows."""
    if user := os.environ.get("MLFLOW_TRACKING_USERNAME"):
        return user
    with contextlib.suppress(OSError, KeyError):  # a container's user without a name
        return f"{getpass.getuser()}@{socket.gethostname()}"
    return f"{os.getuid()}@{socket.gethostname()}"


@contextmanager
def locked(client: MlflowClient, name: str, alias: str) -> Iterator[None]:
    """Hold the lock of an alias. One whose holder was killed is taken after `DEAD_AFTER` seconds."""
    from mlflow.exceptions import MlflowException

    lock, since, seen = f"{LOCK}{name}.{alias}", time.monotonic(), None
    while True:
        try:
            client.create_registered_model(lock, description="An alias is being moved. Safe to delete when it is old.")
            break
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        held = made_at(client, lock)
        if held != seen:
            since, seen = time.monotonic(), held
        elif held is not None and time.monotonic() - since > DEAD_AFTER:
            delete(client, lock)
        if time.monotonic() - since > 4 * DEAD_AFTER:
            raise TransientError(f"alias {alias} of {name}: its lock, the registered model {lock}, can't be taken")
        time.sleep(0.1)
    try:
        yield
    finally:
        delete(client, lock)


def made_at(client: MlflowClient, lock: str) -> int | None:
    from mlflow.exceptions import MlflowException

    try:
        return int(client.get_registered_model(lock).creation_timestamp)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def delete(client: MlflowClient, lock: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.delete_registered_model(lock)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
