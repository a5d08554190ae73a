"""An alias moves to a version that keeps all rules, and to no other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rwkvctl.base.errors import UserError
from rwkvctl.base.names import alias_problem
from rwkvctl.config.specs.rules import PromotionRules, parse
from rwkvctl.registry import rules as checks
from rwkvctl.registry.aliases import move
from rwkvctl.registry.versions import aliases_of, find_version
from rwkvctl.runs.mlflow_client import connect

if TYPE_CHECKING:
    from mlflow import MlflowClient

RULES_TAG = "rwkvctl.rules"
"""Of a registered model: the YAML that every promotion of it is held to."""


def promote(
    name: str,
    version: int,
    alias: str,
    *,
    gates: Sequence[str] = (),
    rules: PromotionRules | None = None,
    tracking_uri: str,
) -> list[str]:
    """Point an alias to a version, if it passes every gate, keeps the rules, and those that the tracking server has for
    this model; returns a line for each.

    Raises:
        UserError: no such model or version, a gate that cannot be read, or all that the version does not keep; then no
            alias has moved. Also where somebody else has moved the alias meanwhile.
    """
    if problem := alias_problem(alias):
        raise UserError(problem)
    client = connect(tracking_uri)
    aliases = aliases_of(client, name)
    candidate = find_version(client, name, version)
    wanted = [PromotionRules(gates=tuple(gates)), *([rules] if rules else []), *kept_on_server(client, name)]
    found = [one for each in wanted for one in checks.check(client, each, candidate, aliases, tracking_uri)]
    if failed := [one.line for one in found if not one.holds]:
        several = f"{len(failed)} of {len(found)} rules are not kept: " if len(failed) > 1 else ""
        raise UserError(f"{name} version {version} is not promoted: {several}{'; '.join(failed)}")
    lines = [one.line for one in found]
    move(client, name, alias, version, expected=aliases.get(alias), kind="promote", checks=lines)
    return lines


def kept_on_server(client: MlflowClient, name: str) -> list[PromotionRules]:
    """The rules that a registered model has on its server, if it has any."""
    text = str(client.get_registered_model(name).tags.get(RULES_TAG, ""))
    return [parse(text, f"rules of {name} on the tracking server")] if text else []


def text_on_server(name: str, tracking_uri: str) -> str:
    """Their YAML; empty where there are none."""
    client = connect(tracking_uri)
    aliases_of(client, name)  # which refuses a model that is not there
    return str(client.get_registered_model(name).tags.get(RULES_TAG, ""))


def keep_on_server(name: str, text: str, tracking_uri: str) -> None:
    """Hold every promotion of a model to these rules from now on; an empty text lifts them."""
    client = connect(tracking_uri)
    aliases_of(client, name)  # which refuses a model that is not there
    if text:
        parse(text, "rules")
        client.set_registered_model_tag(name, RULES_TAG, text)
    elif RULES_TAG in client.get_registered_model(name).tags:
        client.delete_registered_model_tag(name, RULES_TAG)
