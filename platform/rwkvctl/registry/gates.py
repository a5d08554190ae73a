"""Gates of a promotion: bounds of a version's metrics, in numbers or by the version behind an alias.

`dsc_strict>=0.8`, or `dsc_strict>champion` to compare with the version that the alias `champion` points to (passed
where it points to none). A metric is looked for among the version's own, then among those of its training run, under
its name and then as `test/<name>/mean`. It counts only if it was measured on the model's own data and split, and on no
case that was trained on.
"""

from __future__ import annotations

import contextlib
import difflib
import operator
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from rwkvctl.base.errors import UserError
from rwkvctl.registry import measured
from rwkvctl.registry.measured import metrics_of
from rwkvctl.registry.tags import FINGERPRINT_TAG
from rwkvctl.registry.versions import run_of, suggest

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

_GATE = re.compile(r"\s*(?P<metric>[^<>=]+?)\s*(?P<sign>>=|<=|>|<)\s*(?P<bound>\S+)\s*")
_SIGNS = {">=": operator.ge, ">": operator.gt, "<=": operator.le, "<": operator.lt}


def check_gate(client: MlflowClient, gate: str, candidate: ModelVersion, aliases: Mapping[str, int]) -> str:
    """One line on why the candidate passes; UserError on why it does not."""
    parts = _GATE.fullmatch(gate)
    if parts is None:
        raise UserError(f"gate {gate!r}: write METRIC>=NUMBER or METRIC>ALIAS, with >=, >, <= or <")
    metric, sign, bound = parts["metric"], parts["sign"], parts["bound"]
    value, _ = _metric(client, candidate, metric)
    limit, what = _limit(client, gate, candidate, metric, bound, aliases)
    if limit is None:
        return f"{metric} = {value:.6g}: no {bound} to compare with yet"
    if not _SIGNS[sign](value, limit):
        raise UserError(f"{metric} = {value:.6g} is not {sign} {what}")
    return f"{metric} = {value:.6g} {sign} {what}"


def _limit(
    client: MlflowClient,
    gate: str,
    candidate: ModelVersion,
    metric: str,
    bound: str,
    aliases: Mapping[str, int],
) -> tuple[float | None, str]:
    """The right side of a gate, and how to call it; None where it names an alias that points to nothing yet."""
    with contextlib.suppress(ValueError):
        return float(bound), bound
    if bound not in aliases:
        if difflib.get_close_matches(bound, list(aliases), cutoff=0.8):
            raise UserError(f"gate {gate!r}: no alias {bound!r}; {suggest(bound, list(aliases), 'rwkvctl model show')}")
        return None, bound
    other = client.get_model_version(candidate.name, str(aliases[bound]))
    check_same_data(candidate, other, f"gate {gate!r}", bound)
    (value, theirs_on), (_, ours_on) = _metric(client, other, metric), _metric(client, candidate, metric)
    if ours_on != theirs_on:
        raise UserError(
            f"gate {gate!r}: {metric} was measured on {ours_on} for version {candidate.version} and on {theirs_on} for "
            f"{bound} (version {other.version}), so the two cannot be compared: evaluate both on one split"
        )
    return value, f"{value:.6g} of {bound} (version {other.version})"


def check_same_data(candidate: ModelVersion, other: ModelVersion, rule: str, alias: str) -> None:
    """UserError where two versions were trained on different data, which no score can be compared across."""
    ours, theirs = (one.tags.get(FINGERPRINT_TAG) or "unknown" for one in (candidate, other))
    if ours != theirs:
        raise UserError(
            f"{rule}: version {candidate.version} and {alias} (version {other.version}) were trained on "
            f"different data ({ours[:12]} and {theirs[:12]}), so their metrics cannot be compared: retrain one of them"
        )


def _metric(client: MlflowClient, version: ModelVersion, metric: str) -> tuple[float, str]:
    """A metric of a version that a gate may rely on, and the split and cases that it was measured on."""
    where, command = (
        f"{version.name} version {version.version}",
        f"rwkvctl evaluate models:/{version.name}/{version.version}",
    )
    own, notes = metrics_of(version.tags)
    run = run_of(client, version)
    of_run = {} if run is None else run.data.metrics
    for name in (metric, f"test/{metric}/mean"):
        if odd := [note for note in notes if f"tag {measured.tag_of(name)} " in note]:
            raise UserError(f"{where}: {odd[0]}")
        if name in own:
            note = measured.check_for_gate(version.tags, name, where, command)
            cases = "" if note.cases is None else f", {note.cases} cases"
            return own[name], f"split {note.split or 'unknown'}{cases}"
        if name in of_run:
            return float(of_run[name]), "its training run"
    for name in (metric, f"test/{metric}/mean"):
        if places := measured.elsewhere(version.tags, name):
            raise UserError(
                f"{where}: {name} was measured on other data only ({', '.join(places[:3])}), but gates use only "
                f"scores on the model's own data and split; run: {command}"
            )
    near = suggest(metric, sorted({*own, *of_run}), command)
    raise UserError(f"{where} has no metric {metric!r}; {near}")
